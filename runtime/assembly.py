"""Tiles back into a step: each lands in its place in a buffer allocated once, after the checks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from mesh.errors import ProtocolError
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame

TORCH_DTYPES = {
    DType.INT32: torch.int32,
    DType.FLOAT32: torch.float32,
    DType.FLOAT16: torch.float16,
    DType.BFLOAT16: torch.bfloat16,
    DType.UINT8: torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a step may look like here: whatever else comes is refused before any allocation."""

    kind: Kind
    dtype: DType
    width: int
    max_rows: int
    context: int | None  # tokens of the session, within which a step ends; None: has no place there

    def check(self, header: FrameHeader) -> None:
        """Raises ProtocolError for a header that no step of this stage can have."""
        if header.kind != self.kind:
            raise ProtocolError(f"expected a {self.kind.name} frame, got {header.kind.name}")
        if header.dtype != self.dtype or header.width != self.width:
            raise ProtocolError(
                f"a step here is [rows, {self.width}] of {self.dtype.name}; "
                f"[{header.rows}, {header.width}] of {header.dtype.name} came"
            )
        if header.rows > self.max_rows:
            raise ProtocolError(f"a step has at most {self.max_rows} rows; {header.rows} came")
        if self.context is not None and header.position + header.rows > self.context:
            raise ProtocolError(
                f"a step ends within {self.context} tokens; {header.position} + {header.rows} came"
            )


@dataclass(slots=True)
class Assembly:
    """One session's step in the making. Tiles come in order, for links keep their order."""

    first: FrameHeader
    rows: torch.Tensor = field(init=False)  # [rows, width]
    filled: int = 0

    def __post_init__(self) -> None:
        self.rows = torch.empty(
            self.first.rows, self.first.width, dtype=TORCH_DTYPES[self.first.dtype]
        )

    def add(self, frame: TensorFrame) -> bool:
        """Puts a tile in its place; True when the step is whole. Raises ProtocolError."""
        header = frame.header
        if header.row != self.filled or not self._same_step(header):
            raise ProtocolError(
                f"expected row {self.filled} of the step at {self.first.position}, "
                f"got row {header.row} of the step at {header.position}"
            )
        place = self.rows[header.row : header.row + header.tile_rows]
        place.numpy().data.cast("B")[:] = frame.payload
        self.filled += header.tile_rows
        return self.filled == header.rows

    def _same_step(self, header: FrameHeader) -> bool:
        first = self.first
        return (header.position, header.rows, header.width, header.dtype, header.choose) == (
            first.position,
            first.rows,
            first.width,
            first.dtype,
            first.choose,
        )


def assembly_for(header: FrameHeader, current: Assembly | None) -> Assembly:
    """Where a tile belongs: a step begins with its first row. Raises ProtocolError, before any
    allocation, for one of a step that has not begun.
    """
    if header.row == 0:
        return Assembly(header)
    if current is None:
        raise ProtocolError(
            f"expected row 0 of a step, got row {header.row} of the step at {header.position}"
        )
    return current
