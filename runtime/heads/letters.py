"""Questions and answers as bytes. Nothing that comes is believed: whatever does not fit exactly
raises ProtocolError.

    question   conversations C (4 bytes), hidden rows [C, hidden] float32,
               C times (best, named, temperature, weight), all named ids as int32
    answer     a byte that says how it went, three of nothing; then for each conversation
               all logits float32; or
               ids int32 and logits float32 of the best, logits of the named ones,
               [gaps float64], [weight float64]

A letter travels as [1, n] bytes, a long one in lines. How long an answer is follows from the
question alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mesh.errors import GenerationFailed, ProtocolError
from planner.plan import Span
from runtime.drawing import NOT_FINITE, Unknown
from runtime.heads.question import Tell, Want
from runtime.sampling import MAX_TEMPERATURE

LINE_BYTES: Final = 4096
Bytes = npt.NDArray[np.uint8]

_COUNT = struct.Struct("<I")
_WANT: Final = np.dtype(
    [("best", "<u4"), ("named", "<u4"), ("temperature", "<f8"), ("weight", "u1")]
)
_HOW: Final = struct.Struct("<B3x")


class How(IntEnum):
    """How it went."""

    WELL = 0
    NOT_FINITE = 1
    FAILED = 2


def as_rows(letter: bytes) -> Tensor:
    """[1, n] uint8, or [lines, LINE_BYTES]."""
    rows, width = shape(len(letter))
    out = np.zeros(rows * width, dtype=np.uint8)
    out[: len(letter)] = np.frombuffer(letter, dtype=np.uint8)
    return torch.from_numpy(out.reshape(rows, width))


def shape(size_bytes: int) -> tuple[int, int]:
    """Rows and width of a letter of so many bytes."""
    if size_bytes <= LINE_BYTES:
        return 1, size_bytes
    return -(-size_bytes // LINE_BYTES), LINE_BYTES


def question(hidden: Tensor, wanted: Sequence[Want]) -> bytes:
    """Of final hidden rows [C, hidden] fp32, and what is wanted of each within the share."""
    wants = np.array(
        [(one.best, len(one.named), one.temperature, one.weight) for one in wanted], dtype=_WANT
    )
    named = np.concatenate([one.named for one in wanted]).astype("<i4")
    rows = hidden.contiguous().numpy().astype("<f4", copy=False)
    return b"".join((_COUNT.pack(len(wanted)), rows.tobytes(), wants.tobytes(), named.tobytes()))


def longest_question(rows: int, hidden_size: int, span: Span) -> int:
    """Bytes, of at most so many conversations."""
    return _COUNT.size + rows * (4 * hidden_size + _WANT.itemsize + 4 * len(span))


def read_question(data: Bytes, hidden_size: int, span: Span) -> tuple[Tensor, list[Want]]:
    """What `question` wrote to the share that has `span`, perhaps followed by a part of a line."""
    (count,) = _COUNT.unpack(_bytes(data, 0, _COUNT.size).tobytes())
    at = _COUNT.size
    hidden = _bytes(data, at, 4 * count * hidden_size).view("<f4")
    at += hidden.nbytes
    wants = _bytes(data, at, count * _WANT.itemsize).view(_WANT)
    at += wants.nbytes
    named = _bytes(data, at, 4 * int(wants["named"].sum())).view("<i4").astype(np.int64)
    at += 4 * len(named)
    if not count or shape(at) != shape(len(data)):
        raise ProtocolError(f"a question about {count} tokens has {at} bytes; {len(data)} came")
    lengths = np.cumsum(wants["named"])[:-1]
    read = [
        _want(one, ids, span)
        for one, ids in zip(wants.tolist(), np.split(named, lengths), strict=True)
    ]
    rows = torch.from_numpy(hidden.astype(np.float32).reshape(count, hidden_size))
    return rows, read


def answer(tells: Sequence[Tell | None], wanted: Sequence[Want], span: Span) -> bytes:
    """Of the share that has `span`."""
    if any(one is None for one in tells):
        return failure(wanted, span, How.NOT_FINITE)
    parts = [_HOW.pack(How.WELL)]
    for one, want in zip(tells, wanted, strict=True):
        if one is not None:
            parts += _told(one, want)
    return b"".join(parts)


def failure(wanted: Sequence[Want], span: Span, how: How) -> bytes:
    """An answer that says only this."""
    return _HOW.pack(how).ljust(answer_bytes(wanted, span), b"\0")


def answer_bytes(wanted: Sequence[Want], span: Span) -> int:
    """How long the answer of that share is."""
    return _HOW.size + sum(_tell_bytes(want, span) for want in wanted)


def read_answer(data: Bytes, wanted: Sequence[Want], span: Span) -> list[Tell]:
    """What `answer` wrote. Raises GenerationFailed for one that says it did not go well."""
    how = int(data[0])
    if how == How.NOT_FINITE:
        raise GenerationFailed(NOT_FINITE)
    if how == How.FAILED:
        raise GenerationFailed(
            "a device could not compute its share of the vocabulary; see its log"
        )
    if how != How.WELL:
        raise ProtocolError(f"an answer about the vocabulary begins with 0, 1 or 2; got {how}")
    tells, at = [], _HOW.size
    for want in wanted:
        size = _tell_bytes(want, span)
        tells.append(_tell(data[at : at + size], want, span))
        at += size
    return tells


def _bytes(data: Bytes, first: int, size: int) -> Bytes:
    part = data[first : first + size]
    if len(part) < size:
        raise ProtocolError(f"a question about the vocabulary ends after {len(data)} bytes")
    return part


def _want(fields: tuple[int, int, float, int], ids: npt.NDArray[np.int64], span: Span) -> Want:
    count, named, temperature, weight = fields
    if len(ids) and (ids[0] < span.first or ids[-1] >= span.last or (np.diff(ids) < 1).any()):
        raise ProtocolError(f"the ids asked for ascend and lie in {span}")
    if count + named > len(span) or not (count or named == len(span)):
        raise ProtocolError(f"{count} and {named} tokens of {len(span)} were asked for")
    if not 0 <= temperature <= MAX_TEMPERATURE or weight > 1:
        raise ProtocolError(f"a temperature lies between 0 and {MAX_TEMPERATURE:g}")
    return Want(count, ids, temperature, bool(weight))


def _tell_bytes(want: Want, span: Span) -> int:
    if want.tells_all(span):
        return 4 * len(span)
    told = want.best + len(want.named)
    gaps = 8 * (told + 1) if want.temperature else 0
    return 4 * want.best + 4 * told + gaps + 8 * want.weight


def _told(one: Tell, want: Want) -> list[bytes]:
    if one.unknown is None:
        return [one.logits.astype("<f4", copy=False).tobytes()]
    is_named = np.isin(one.ids, want.named, assume_unique=True)
    parts = [
        one.ids[~is_named].astype("<i4").tobytes(),
        one.logits[~is_named].astype("<f4", copy=False).tobytes(),
        one.logits[is_named].astype("<f4", copy=False).tobytes(),
    ]
    if one.unknown.gaps is not None:
        parts.append(one.unknown.gaps.astype("<f8", copy=False).tobytes())
    if want.weight:
        parts.append(struct.pack("<d", one.unknown.weight))
    return parts


def _tell(data: Bytes, want: Want, span: Span) -> Tell:
    if want.tells_all(span):
        logits = _finite(data.view("<f4"))
        return Tell(np.arange(span.first, span.last), logits, None)
    count, named = want.best, len(want.named)
    found = data[: 4 * count].view("<i4").astype(np.int64)
    if found[0] < span.first or found[-1] >= span.last or (np.diff(found) < 1).any():
        raise ProtocolError(f"the ids of the best ascend and lie in {span}")
    at = 4 * count + 4 * (count + named)
    logits = _finite(data[4 * count : at].view("<f4"))
    ids = np.concatenate([found, want.named])
    order = np.argsort(ids, kind="stable")
    ids, lowest = ids[order], float(logits[:count].min())
    if (np.diff(ids) < 1).any():
        raise ProtocolError("what was asked for by name is not among the best")
    last = int(found[np.flatnonzero(logits[:count] == lowest)[-1]])
    gaps = None
    if want.temperature:
        gaps = _weights(data[at : at + 8 * (len(ids) + 1)], len(span))
        at += gaps.nbytes
    weight = float(_weights(data[at : at + 8], len(span))[0]) if want.weight else 0.0
    return Tell(ids, logits[order], Unknown(((lowest, last),), gaps, weight))


def _finite(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise ProtocolError("a logit that is told is finite")
    return logits.astype(np.float32)


def _weights(data: Bytes, most: int) -> npt.NDArray[np.float64]:
    """Each of at most so many tokens, none of which weighs more than 1."""
    weights = data.view("<f8").astype(np.float64)
    if not ((weights >= 0) & (weights <= most + 1)).all():
        raise ProtocolError(f"the tokens of a share weigh between 0 and {most}")
    return weights
