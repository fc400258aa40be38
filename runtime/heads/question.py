"""What is asked of a share of the vocabulary, what it tells, and how the answers become one.

A few numbers of each share decide what all logits would: its best candidates, what was asked for by
name, and how much the rest weighs (`runtime.drawing`). Pure; shares are spans of token ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mesh.errors import GenerationFailed
from planner.plan import Span
from runtime.chosen import Chosen
from runtime.drawing import (
    NOT_FINITE,
    Doubles,
    Floats,
    Known,
    Unknown,
    best,
    changed_ids,
    decide,
    is_finite,
)
from runtime.history import History, Ids
from runtime.sampling import Sampling

# Of each share, where it cannot be known how many will be needed: mostly enough for top_p, and what
# is drawn from all tokens is seldom another.
CANDIDATES: Final = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """A token to be chosen for `position`."""

    sampling: Sampling
    position: int
    history: History | None


@dataclass(frozen=True, slots=True)
class Want:
    """What is wanted of the logits of one position."""

    best: int  # so many of those that are not named; as many as a share has rows: all
    named: Ids  # ascending
    temperature: float = 0.0  # at which the others are weighed; 0: not wanted
    weight: bool = False  # whether their weight without temperature is wanted

    def within(self, span: Span) -> Want:
        """The same of a share with these rows."""
        first, last = np.searchsorted(self.named, (span.first, span.last))
        named = self.named[first:last]
        free = len(span) - len(named)
        return Want(min(self.best, free), named, self.temperature, self.weight)

    def everything(self, vocabulary: int) -> Want:
        """The same, and all logits."""
        return replace(self, best=vocabulary)

    def tells_all(self, span: Span) -> bool:
        """Whether nothing of the share is left out; then nothing is weighed."""
        return self.best + len(self.named) == len(span)


@dataclass(frozen=True, slots=True)
class Tell:
    """Logits [N] of a share's ids, ascending, and what is said of the rest."""

    ids: Ids
    logits: npt.NDArray[np.float32]
    unknown: Unknown | None  # None: there is no rest


def draw(logits: Tensor, choice: Choice) -> Chosen:
    """A token from all logits [V]. Raises GenerationFailed unless all are finite, and for a bias or
    a history of tokens that the model does not have.
    """
    row, whole = logits.numpy(), Span(0, len(logits))
    wanted = want(choice)
    # Weighing all in one go is several times as quick as having all of them compete.
    for each in (wanted, wanted.everything(len(whole))):
        told = tell(row, whole, each.within(whole))
        if told is None:
            raise GenerationFailed(NOT_FINITE)
        chosen = decided(merged([told], each, len(whole)), choice)
        if chosen is not None:
            break
    assert chosen is not None, "all logits decide"
    return chosen


def decided(known: Known, choice: Choice) -> Chosen | None:
    """See `runtime.drawing.decide`."""
    return decide(known, choice.sampling, choice.position, choice.history)


def want(choice: Choice) -> Want:
    """What decides a choice, mostly."""
    sampling = choice.sampling
    named = changed_ids(sampling, choice.position, choice.history)
    count = max(1, sampling.logprobs or 0)
    weight = sampling.logprobs is not None
    if sampling.temperature == 0:
        return Want(count, named, weight=weight)
    if sampling.top_k is not None:
        return Want(max(count, sampling.top_k), named, weight=weight)
    return Want(CANDIDATES, named, sampling.temperature, weight)


def tell(logits: npt.NDArray[np.float32], span: Span, wanted: Want) -> Tell | None:
    """Of a share's logits [len(span)], what is wanted `within` it; None unless all are finite."""
    if not is_finite(logits):
        return None
    if wanted.tells_all(span):
        return Tell(np.arange(span.first, span.last), logits, None)
    free: Floats = logits
    named = wanted.named - span.first
    if len(named):
        free = logits.copy()
        free[named] = -np.inf
    found = np.array([free.argmax()]) if wanted.best == 1 else best(free, wanted.best)
    highest, last = float(logits[found[-1]]), int(found[-1]) + span.first
    places = np.sort(np.concatenate([found, named]) if len(named) else found)
    gaps, weight = _weighed(logits, places, highest, wanted)
    unknown = Unknown(((highest, last),), gaps, weight)
    return Tell(places + span.first, logits[places], unknown)


def merged(tells: Sequence[Tell], wanted: Want, vocabulary: int) -> Known:
    """What is known of a position from what all shares told of it, in the order of their ids."""
    ids = np.concatenate([one.ids for one in tells])
    logits = np.concatenate([one.logits for one in tells])
    rests = [one.unknown for one in tells if one.unknown is not None]
    if not rests:
        return Known(logits, vocabulary, ids)
    highest = max(rest.highest for rest in rests)
    bounds = tuple(bound for rest in rests for bound in rest.bounds)
    weight = sum(rest.weight * math.exp(rest.highest - highest) for rest in rests)
    gaps = _joined(tells, wanted.temperature, highest) if wanted.temperature else None
    return Known(logits, vocabulary, ids, Unknown(bounds, gaps, weight))


def _weighed(
    logits: npt.NDArray[np.float32], told: Ids, highest: float, wanted: Want
) -> tuple[Doubles | None, float]:
    """The weights in the gaps between the places that are told, and of all that are not."""
    if not wanted.temperature and not wanted.weight:
        return None, 0.0
    below = logits.astype(np.float64)
    below -= highest
    below[told] = -np.inf
    if not wanted.temperature:
        return None, float(np.exp(below, out=below).sum())
    weight = float(np.exp(below).sum()) if wanted.weight else 0.0
    with np.errstate(over="ignore"):
        below /= wanted.temperature
    # The sum of each stretch from one told place, which weighs nothing here, to the next.
    return np.add.reduceat(np.exp(below, out=below), np.concatenate([[0], told])), weight


def _joined(tells: Sequence[Tell], temperature: float, highest: float) -> Doubles:
    """The gaps of all shares: between two of them lie the last of one and the first of the next."""
    gaps = np.zeros(sum(len(one.ids) for one in tells) + 1)
    first = 0
    for one in tells:
        if one.unknown is not None:
            assert one.unknown.gaps is not None, "they are wanted of all or of none"
            scale = math.exp((one.unknown.highest - highest) / temperature)
            gaps[first : first + len(one.ids) + 1] += one.unknown.gaps * scale
        first += len(one.ids)
    return gaps
