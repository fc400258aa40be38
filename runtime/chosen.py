"""A chosen token on its way back to its owner, and how probable it was where that is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mesh.errors import ProtocolError

MAX_LOGPROBS: Final = 20  # the most probable tokens that may be asked for beside the chosen one
LOWEST_LOGPROB: Final = -9999.0  # what OpenAI's clients know as "practically impossible"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token; its natural logarithm of probability, and the most probable tokens with theirs."""

    token: int
    logprob: float | None = None  # None: not asked for
    top: tuple[tuple[int, float], ...] = ()  # most probable first


def to_row(chosen: Chosen) -> Tensor:
    """[1, 1] int32: the token. With n most probable ones [1, 2 + 2n]: token, logprob, n pairs of
    token and logprob; a logprob is the bits of a float32.
    """
    if chosen.logprob is None:
        return torch.tensor([[chosen.token]], dtype=torch.int32)
    pairs = ((chosen.token, chosen.logprob), *chosen.top)
    row = np.empty((len(pairs), 2), dtype="<i4")
    row[:, 0] = [token for token, _ in pairs]
    row[:, 1] = np.array([logprob for _, logprob in pairs], dtype="<f4").view("<i4")
    return torch.from_numpy(row.reshape(1, -1).astype(np.int32, copy=False))


def from_payload(payload: bytes | memoryview, width: int) -> Chosen:
    """What `to_row` wrote, from a frame's bytes [1, width] int32. Raises ProtocolError."""
    if width != 1 and (width < 2 or width % 2 or width > 2 + 2 * MAX_LOGPROBS):
        raise ProtocolError(
            f"a chosen token is 1 number, or 2 to {2 + 2 * MAX_LOGPROBS} in pairs; got {width}"
        )
    if len(payload) != 4 * width:
        raise ProtocolError(f"{width} numbers are {4 * width} bytes; got {len(payload)}")
    numbers = np.frombuffer(payload, dtype="<i4")
    if width == 1:
        return Chosen(_token(int(numbers[0])))
    tokens, logprobs = numbers[0::2].tolist(), numbers[1::2].copy().view("<f4").tolist()
    pairs = tuple(
        (_token(token), _logprob(logprob)) for token, logprob in zip(tokens, logprobs, strict=True)
    )
    return Chosen(pairs[0][0], pairs[0][1], pairs[1:])


def _token(token: int) -> int:
    if token < 0:
        raise ProtocolError(f"a token's id is not negative; got {token}")
    return token


def _logprob(logprob: float) -> float:
    if not math.isfinite(logprob) or not LOWEST_LOGPROB <= logprob <= 0.0:
        raise ProtocolError(
            f"a logprob lies between {LOWEST_LOGPROB:g} and 0; a device sent {logprob}"
        )
    return logprob
