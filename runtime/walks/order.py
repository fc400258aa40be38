"""An order: what the lead of a stage has its devices compute together, in one message."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mesh.codec import decode, encode
from mesh.errors import ProtocolError
from mesh.ids import SessionId
from mesh.limits import MAX_SESSIONS
from runtime.stage import Slice

_LENGTH = struct.Struct("<I")
WIDTH: Final = 256  # an order travels as a matrix of bytes so wide
_DTYPES: Final = {"int32": torch.int32, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class _Entry:
    session: SessionId
    position: int
    rows: int
    choose: bool
    is_source: bool


@dataclass(frozen=True, slots=True)
class _Order:
    entries: tuple[_Entry, ...]
    width: int
    dtype: str


def to_bytes(slices: Sequence[Slice]) -> Tensor:
    """The slices as [N, WIDTH] uint8."""
    rows = [each.rows for each in slices]
    entries = tuple(
        _Entry(each.session, each.position, len(each.rows), each.choose, each.is_source)
        for each in slices
    )
    dtype = str(rows[0].dtype).removeprefix("torch.")
    head = encode(_Order(entries, rows[0].shape[1], dtype))
    numbers = torch.cat(rows).contiguous().cpu().view(-1).view(torch.uint8)
    size = _LENGTH.size + len(head) + len(numbers)
    packed = torch.zeros(-(-size // WIDTH) * WIDTH, dtype=torch.uint8)
    start = bytearray(_LENGTH.pack(len(head)) + head)
    packed[: len(start)] = torch.frombuffer(start, dtype=torch.uint8)
    packed[len(start) : size] = numbers
    return packed.view(-1, WIDTH)


def from_bytes(packed: Tensor, most_rows: int, width: int) -> list[Slice]:
    """What `to_bytes` wrote. Raises ProtocolError for what no lead of a stage would ask: more
    than `most_rows` rows, or of another width than `width` and 1.
    """
    data = packed.contiguous().view(-1).numpy().data
    if len(data) < _LENGTH.size:
        raise ProtocolError("an order is longer than its own length")
    (length,) = _LENGTH.unpack_from(data)
    order: _Order = decode(_Order, data[_LENGTH.size : _LENGTH.size + length])
    counts = [entry.rows for entry in order.entries]
    if not 0 < len(counts) <= MAX_SESSIONS or min(counts) < 1 or sum(counts) > most_rows:
        raise ProtocolError(
            f"an order has 1 to {MAX_SESSIONS} runs of at most {most_rows} rows together; "
            f"got {len(counts)} of {sum(counts)}"
        )
    if order.dtype not in _DTYPES or order.width not in (1, width):
        raise ProtocolError(f"an order of [rows, {order.width}] {order.dtype:.20} is not for here")
    first = _LENGTH.size + length
    size = sum(counts) * order.width * 4
    if first + size > len(data):
        raise ProtocolError(f"an order of {size} bytes of rows came with {len(data) - first}")
    numbers = torch.frombuffer(bytearray(data[first : first + size]), dtype=_DTYPES[order.dtype])
    rows = torch.split(numbers.view(-1, order.width), counts)
    return [
        Slice(entry.session, entry.position, part, entry.choose, entry.is_source)
        for entry, part in zip(order.entries, rows, strict=True)
    ]
