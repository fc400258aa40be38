"""An arrival: one layer's cache on its way here from the device that had the layer before.

Its tiles go into the cache as they come, so that it is never in memory twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.errors import MeshError, ProtocolError
from mesh.ids import PeerId
from mesh.tensor_frame import DType, TensorFrame
from runtime.finite import check_finite


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows [N, width], from `row` on, of the `count` tokens at and behind position `first`."""

    first: int
    count: int
    row: int
    rows: Tensor

    @property
    def is_last(self) -> bool:
        return self.row + len(self.rows) == self.count


class Arrival:
    """The event loop brings tiles; whoever asked for the cache takes them one after the other."""

    def __init__(self, giver: PeerId, layer: int, tokens: int, width: int) -> None:
        """Of the layer at most the first `tokens` are wanted, `width` numbers of each."""
        self.giver = giver
        self.layer = layer
        self._tokens = tokens
        self._width = width
        self._bounds: tuple[int, int] | None = None  # position of the first, and how many come
        self._filled = 0
        self._tiles: asyncio.Queue[Tile | MeshError] = asyncio.Queue()

    def take(self, frame: TensorFrame) -> None:
        """A frame of the giver's for this layer. Raises ProtocolError for one that is not asked
        for, NotFinite among it; then there will be nothing more.
        """
        try:
            self._tiles.put_nowait(self._checked(frame))
        except ProtocolError as error:
            self.fail(error)
            raise

    def fail(self, error: MeshError) -> None:
        """Nothing more will come."""
        self._tiles.put_nowait(error)

    async def next(self) -> Tile:
        """The next rows. Raises what `fail` was told."""
        tile = await self._tiles.get()
        if isinstance(tile, MeshError):
            raise tile
        return tile

    def _checked(self, frame: TensorFrame) -> Tile:
        """All bounds are checked before anything is allocated."""
        header = frame.header
        bounds = (header.position, header.rows)
        if (header.dtype, header.width) != (DType.FLOAT32, self._width):
            raise ProtocolError(
                f"a token of a cache here is {self._width} numbers of FLOAT32; "
                f"{header.width} of {header.dtype.name} came"
            )
        if header.position + header.rows > self._tokens:
            raise ProtocolError(
                f"the first {self._tokens} tokens were asked for; "
                f"{header.position} + {header.rows} came"
            )
        if header.row != self._filled or self._bounds not in (None, bounds):
            raise ProtocolError(
                f"expected row {self._filled} of a cache, got row {header.row} of {header.rows}"
            )
        rows = torch.frombuffer(bytearray(frame.payload), dtype=torch.float32)
        check_finite(rows)
        self._bounds, self._filled = bounds, header.row + header.tile_rows
        rows = rows.view(header.tile_rows, header.width)
        return Tile(header.position, header.rows, header.row, rows)
