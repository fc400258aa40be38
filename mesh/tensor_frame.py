"""One message of tensor bytes: a small msgpack header, then the raw numbers. No torch, no pickle.

A step's tensor [rows, width] travels as tiles of whole rows, each of at most TENSOR_TILE_BYTES.
The header carries (epoch, plan, session, position), so that the receiver can refuse what is stale,
and the bounds of the whole, so that it can check them before it allocates anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import msgpack

from mesh.errors import ProtocolError
from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.limits import (
    MAX_HEADER_BYTES,
    MAX_TENSOR_BYTES,
    MAX_TENSOR_DIM,
    MAX_TENSOR_FRAME_BYTES,
    TENSOR_TILE_BYTES,
)

_LENGTH = struct.Struct("<H")
_FIELDS = 13


class Kind(IntEnum):
    TOKENS = 0  # [rows, 1] int32, owner to first stage
    HIDDEN = 1  # [rows, hidden], stage to stage
    CHOSEN = 2  # [1, 1] int32, last stage to owner
    DONE = 3  # [1, 1] int32, last stage to owner: the step is done and nothing was to be chosen
    PROBE = 4  # link measurement; the content means nothing
    SOURCE = 5  # [rows, 1] int32 or [rows, bands] float32, owner to first stage: what to encode
    ENCODED = 6  # [rows, hidden], stage to stage: a source on its way through the encoder
    VECTOR = 7  # [1, width] float32, last stage to owner: what an encoder says of a source
    HEAD_ASK = 8  # [n, 1..4096] uint8, last stage to a share of the vocabulary: what to tell
    HEAD_TELL = 9  # [n, 1..4096] uint8, the answer: the best candidates among its rows
    ORDER = 10  # [n, 256] uint8, lead of a stage to the others: what to compute together
    PIECE = 11  # [rows, width], between the devices of a stage
    GIVEN_UP = 12  # [1, n] uint8, between the devices of a stage: a turn is over, and why
    AGAIN = 13  # [1, 2] int32, owner to a stage: a layer, and how many rows that went into it
    CACHE = 14  # [rows, 2 x heads x size] float32, to who has a layer now from who had it before

    @property
    def is_source(self) -> bool:
        """Whether it is of a pass that encodes; such a step goes whole, for its rows see all."""
        return self in (Kind.SOURCE, Kind.ENCODED)

    @property
    def from_owner(self) -> bool:
        """Whether a step begins with it."""
        return self in (Kind.TOKENS, Kind.SOURCE, Kind.AGAIN)

    @property
    def in_stage(self) -> bool:
        """Whether it stays between the devices of a stage. Its `session` is the number of the turn,
        and `position` the number of the piece; of a turn that is given up, 1 where the whole plan
        is of no use any more.
        """
        return self in (Kind.ORDER, Kind.PIECE, Kind.GIVEN_UP)

    @property
    def of_head(self) -> bool:
        """Whether it is between the last stage and the shares of the vocabulary. Its `session` is
        the number of the question.
        """
        return self in (Kind.HEAD_ASK, Kind.HEAD_TELL)

    @property
    def to_owner(self) -> bool:
        """Whether a step ends with it."""
        return self in (Kind.CHOSEN, Kind.DONE, Kind.VECTOR)


class DType(IntEnum):
    INT32 = 0
    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    UINT8 = 4

    @property
    def size_bytes(self) -> int:
        return _DTYPE_BYTES[self]


_DTYPE_BYTES = {
    DType.INT32: 4,
    DType.FLOAT32: 4,
    DType.FLOAT16: 2,
    DType.BFLOAT16: 2,
    DType.UINT8: 1,
}


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """`position` is the first token's place in the session; `row` the tile's place in the step.

    A source has no place of its own. Where a decoder is to speak about it, `position` is that of
    the first token that is chosen; else the number of the source. A step that goes `until` a layer
    is computed again by those before it alone; 0: by all. A cache is of the layer before `until`.
    """

    epoch: Epoch
    plan: PlanId
    session: SessionId
    kind: Kind
    dtype: DType
    choose: bool  # whether the last stage should sample a token after this step
    position: int
    rows: int  # of the whole step
    row: int  # first row of this tile
    tile_rows: int
    width: int
    until: int = 0

    @property
    def tile_bytes(self) -> int:
        return self.tile_rows * self.width * self.dtype.size_bytes


@dataclass(frozen=True, slots=True)
class TensorFrame:
    header: FrameHeader
    payload: memoryview  # tile_bytes long


def encode_header(header: FrameHeader) -> bytes:
    """The length-prefixed header, to be followed by the payload."""
    packed: bytes = msgpack.packb(
        (
            header.epoch.counter,
            bytes.fromhex(header.epoch.leader),
            bytes.fromhex(header.plan),
            bytes.fromhex(header.session),
            int(header.kind),
            int(header.dtype),
            header.choose,
            header.position,
            header.rows,
            header.row,
            header.tile_rows,
            header.width,
            header.until,
        )
    )
    return _LENGTH.pack(len(packed)) + packed


def tiles(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each tile: at most TENSOR_TILE_BYTES, but at least one whole row."""
    step = max(1, TENSOR_TILE_BYTES // row_bytes)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def decode_frame(data: bytes | bytearray | memoryview) -> TensorFrame:
    """Checks every bound before anything is allocated; raises ProtocolError and nothing else."""
    view = memoryview(data)
    if len(view) > MAX_TENSOR_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(view)} bytes; at most {MAX_TENSOR_FRAME_BYTES}")
    if len(view) < _LENGTH.size:
        raise ProtocolError("frame shorter than its header's length")
    (length,) = _LENGTH.unpack_from(view)
    body = _LENGTH.size + length
    if body > MAX_HEADER_BYTES or body > len(view):
        raise ProtocolError(f"frame header of {body} bytes; at most {MAX_HEADER_BYTES}")
    header = _read_header(view[_LENGTH.size : body])
    payload = view[body:]
    if len(payload) != header.tile_bytes:
        raise ProtocolError(
            f"a tile [{header.tile_rows}, {header.width}] of {header.dtype.name} has "
            f"{header.tile_bytes} bytes; {len(payload)} came"
        )
    return TensorFrame(header, payload)


def _read_header(data: memoryview) -> FrameHeader:
    try:
        fields = msgpack.unpackb(data, raw=False, max_array_len=_FIELDS, max_ext_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not a frame header: {error or type(error).__name__}") from None
    if type(fields) is not list or len(fields) != _FIELDS:
        raise ProtocolError(f"a frame header is a list of {_FIELDS} fields")
    counter, leader, plan, session, kind, dtype, choose, *numbers = fields
    for raw, size in ((leader, 32), (plan, 16), (session, 16)):
        if type(raw) is not bytes or len(raw) != size:
            raise ProtocolError(f"an id in a frame header has {size} bytes")
    if type(choose) is not bool:
        raise ProtocolError("`choose` in a frame header is a boolean")
    for number in (counter, kind, dtype, *numbers):
        if type(number) is not int or not 0 <= number < 1 << 63:
            raise ProtocolError("a number in a frame header is not a non-negative integer")
    try:
        kind, dtype = Kind(kind), DType(dtype)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    position, rows, row, tile_rows, width, until = numbers
    _check_bounds(dtype, position, rows, row, tile_rows, width)
    if until > MAX_TENSOR_DIM:
        raise ProtocolError(f"layer {until} is beyond any model")
    return FrameHeader(
        Epoch(counter, PeerId(leader.hex())),
        PlanId(plan.hex()),
        SessionId(session.hex()),
        kind,
        dtype,
        choose,
        position,
        rows,
        row,
        tile_rows,
        width,
        until,
    )


def _check_bounds(
    dtype: DType, position: int, rows: int, row: int, tile_rows: int, width: int
) -> None:
    if not (0 < rows <= MAX_TENSOR_DIM and 0 < width <= MAX_TENSOR_DIM):
        raise ProtocolError(f"a tensor [{rows}, {width}] is outside [1..{MAX_TENSOR_DIM}]")
    if rows * width * dtype.size_bytes > MAX_TENSOR_BYTES:
        raise ProtocolError(f"a tensor [{rows}, {width}] exceeds {MAX_TENSOR_BYTES} bytes")
    if tile_rows < 1 or row + tile_rows > rows:
        raise ProtocolError(f"tile rows {row}..{row + tile_rows} of {rows}")
    if position > MAX_TENSOR_DIM:
        raise ProtocolError(f"position {position} is beyond any context")
