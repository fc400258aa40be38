"""From logits to a token: the same token for the same seed and position, on whichever device.

In this order, as transformers has it where it has them: repetition penalty, frequency and presence
penalty, logit bias; with temperature 0 the best of what came of it; else temperature, top k, top p,
min p, and a draw.

Nothing of it needs all logits. Where devices share the vocabulary, it is decided from the best of
each and from how much the others weigh (`Unknown`), or else said that more must be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mesh.errors import GenerationFailed
from runtime.chosen import LOWEST_LOGPROB, Chosen
from runtime.history import History, Ids
from runtime.sampling import Sampling

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32] | Doubles

# Of `top_p`: so that no rounding decides where tokens add up to the very share that was asked for.
_SLACK: Final = 1e-9

NOT_FINITE: Final = (
    "the model's output is not finite: the file is damaged or a device computes wrongly; "
    "compare the file's hash with its source"
)


@dataclass(frozen=True, slots=True)
class Unknown:
    """What is said of the logits that are not known, none of which a penalty or a bias changes."""

    # (logit, id): behind each of them, in the order of `best`, comes whatever it stands for.
    bounds: tuple[tuple[float, int], ...]
    gaps: Doubles | None  # [N + 1] weights, by temperature: before each known id, behind the last
    weight: float  # of all, without temperature

    @property
    def highest(self) -> float:
        """Of the bounds; weights are e ** (logit - highest)."""
        return max(logit for logit, _ in self.bounds)


@dataclass(frozen=True, slots=True)
class Known:
    """Logits [N] of one position: all, or of some ids [N], ascending."""

    logits: npt.NDArray[np.float32]
    vocabulary: int
    ids: Ids | None = None  # None: all
    unknown: Unknown | None = None

    def id_at(self, index: int) -> int:
        return index if self.ids is None else int(self.ids[index])

    def places(self, ids: Ids) -> Ids:
        """Where these ids are. Raises GenerationFailed for one that the model does not have."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise GenerationFailed(
                f"token ids lie between 0 and {self.vocabulary - 1}; a bias or a penalty names "
                "another"
            )
        if self.ids is None:
            return ids
        places = np.searchsorted(self.ids, ids)
        assert np.array_equal(self.ids[places], ids), "what is changed by name is always asked for"
        return places


def decide(
    known: Known, sampling: Sampling, position: int, history: History | None = None
) -> Chosen | None:
    """The token for `position` from finite logits, given what came before where a penalty is on;
    where asked for, with the logprobs of the model's own distribution: before penalties, bias,
    temperature and cuts, so that they say what the model thinks. None where what is known of the
    logits is too little to say.

    Nothing else is remembered from token to token: a replay, here or elsewhere, draws the same.
    Raises GenerationFailed for a bias or a history of tokens that the model does not have.
    """
    values = _adjusted(known, sampling, position, history)
    if sampling.temperature == 0:
        place: int | None = int(values.argmax())  # the first of equals
    else:
        place = _drawn(known, values, sampling, position)
    if place is None:
        return None
    if sampling.logprobs is None:
        return Chosen(known.id_at(place))
    logprobs = _logprobs(known)
    top = best(known.logits, sampling.logprobs)
    pairs = tuple((known.id_at(int(one)), float(logprobs[one])) for one in top)
    return Chosen(known.id_at(place), float(logprobs[place]), pairs)


def is_finite(values: Floats) -> bool:
    """Whether all are; where any is not, so is the least or the greatest."""
    return math.isfinite(values.min()) and math.isfinite(values.max())


def best(values: Floats, count: int) -> Ids:
    """The places of the `count` largest, largest first, the lower place first among equals."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # Sorting a vocabulary of 262,144 takes 20 ms; finding the bound first takes 0.4.
    bound = np.partition(values, -count)[-count]
    places = np.flatnonzero(values >= bound)
    return places[np.argsort(-values[places], kind="stable")][:count]


def changed_ids(sampling: Sampling, position: int, history: History | None) -> Ids:
    """The tokens whose logits a penalty or a bias changes, ascending."""
    groups = [np.array([token for token, _ in sampling.logit_bias], dtype=np.int64)]
    if sampling.needs_history and history is not None:
        penalised = sampling.repetition_penalty != 1
        groups.append(history.seen(position) if penalised else history.generated(position)[0])
    return np.unique(np.concatenate(groups))


def _adjusted(known: Known, sampling: Sampling, position: int, history: History | None) -> Floats:
    """The logits after penalties and bias; the very same array where there are none."""
    if not sampling.needs_history and not sampling.logit_bias:
        return known.logits
    values = known.logits.astype(np.float64)
    if sampling.needs_history:
        if history is None:
            raise GenerationFailed(
                "a penalty is on, and the stage that chooses tokens was not told what came before"
            )
        if sampling.repetition_penalty != 1:
            seen, penalty = known.places(history.seen(position)), sampling.repetition_penalty
            before = values[seen]
            values[seen] = np.where(before < 0, before * penalty, before / penalty)
        ids, counts = history.generated(position)
        said = known.places(ids)
        values[said] -= sampling.frequency_penalty * counts + sampling.presence_penalty
    if sampling.logit_bias:
        biased = known.places(np.array([token for token, _ in sampling.logit_bias]))
        np.add.at(values, biased, [bias for _, bias in sampling.logit_bias])
    return values


def _drawn(known: Known, values: Floats, sampling: Sampling, position: int) -> int | None:
    """The place of the token that is drawn; None where what is known does not decide."""
    scaled = values.astype(np.float64)
    peak = float(scaled.max())
    scaled -= peak
    with np.errstate(over="ignore"):  # near temperature 0 all but the best are infinitely far off
        scaled /= sampling.temperature
    weights = np.exp(scaled)  # of the best: 1
    uniform = _uniform(sampling.seed, position)
    if sampling.top_k is None and sampling.top_p == 1 and sampling.min_p == 0:
        return _of_all(known, weights, sampling.temperature, peak, uniform)
    kept = _kept(known, values, weights, sampling, peak)
    if kept is None:
        return None
    # Added up in the order of ids, not of probability: two tokens of nearly the same probability
    # may change places from one device's arithmetic to another's, and then nothing else moves.
    kept.sort()
    return int(kept[_at(np.cumsum(weights[kept]), uniform)])


def _of_all(
    known: Known, weights: Doubles, temperature: float, peak: float, uniform: float
) -> int | None:
    """The place drawn from all tokens; None where it lies in a gap between those known."""
    if known.unknown is None:
        return _at(np.cumsum(weights), uniform)
    steps = np.empty(2 * len(weights) + 1)
    steps[0::2] = _gaps(known.unknown, temperature, peak)
    steps[1::2] = weights
    at = _at(np.cumsum(steps), uniform)
    return at // 2 if at % 2 else None


def _at(cumulated: Doubles, uniform: float) -> int:
    drawn = uniform * cumulated[-1]
    return min(int(np.searchsorted(cumulated, drawn, side="right")), len(cumulated) - 1)


def _kept(
    known: Known, values: Floats, weights: Doubles, sampling: Sampling, peak: float
) -> Ids | None:
    """The places that top_k, top_p and min_p leave; None where unknown ones may be among them."""
    if sampling.top_k is None and sampling.top_p == 1:
        kept = np.flatnonzero(weights >= sampling.min_p)
        return kept if _weight_bound(known, sampling.temperature, peak) < sampling.min_p else None
    if sampling.top_k is not None:
        kept = best(values, sampling.top_k)
        if not _are_best(known, values, kept, sampling.top_k):
            return None
        count = _count(weights[kept], float(weights[kept].sum()), sampling.top_p)
        kept = kept[:count]
    else:
        found = _nucleus(known, values, weights, sampling, peak)
        if found is None:
            return None
        kept = found
    return kept[weights[kept] >= sampling.min_p]


def _nucleus(
    known: Known, values: Floats, weights: Doubles, sampling: Sampling, peak: float
) -> Ids | None:
    """The fewest best places that have top_p of the weight of all tokens, unknown ones included."""
    total = float(weights.sum())
    if known.unknown is not None:
        total += float(_gaps(known.unknown, sampling.temperature, peak).sum())
    for guess in (256, 8192):  # mostly a few hundred are enough, and sorting all takes 0.1 s
        kept = best(values, guess)
        count = _count(weights[kept], total, sampling.top_p)
        if count < len(kept):
            break
    else:
        kept = best(values, len(values))
        count = _count(weights[kept], total, sampling.top_p)
    return kept[:count] if _are_best(known, values, kept[:count], count) else None


def _count(weights: Doubles, total: float, top_p: float) -> int:
    """How many of `weights`, the largest first, are the fewest that have this share of `total`;
    one more than there are where all have less.
    """
    if top_p == 1:
        return len(weights)
    return int(np.searchsorted(np.cumsum(weights) / total, top_p * (1 - _SLACK))) + 1


def _are_best(known: Known, values: Floats, kept: Ids, count: int) -> bool:
    """Whether these, best first, are the best `count` of all, or all there are."""
    if known.unknown is None:
        return True
    if len(kept) < count:
        return False
    value, token = float(values[kept[-1]]), known.id_at(int(kept[-1]))
    return all((-value, token) <= (-logit, one) for logit, one in known.unknown.bounds)


def _weight_bound(known: Known, temperature: float, peak: float) -> float:
    """No weight that is not known is above."""
    if known.unknown is None:
        return -1.0
    return math.exp((known.unknown.highest - peak) / temperature)


def _gaps(unknown: Unknown, temperature: float, peak: float) -> Doubles:
    assert unknown.gaps is not None, "where weights count, they are asked for"
    scaled: Doubles = unknown.gaps * math.exp((unknown.highest - peak) / temperature)
    return scaled


def _logprobs(known: Known) -> Doubles:
    values = known.logits.astype(np.float64)
    peak = float(values.max())
    values -= peak
    total = float(np.exp(values).sum())
    if known.unknown is not None:
        total += known.unknown.weight * math.exp(known.unknown.highest - peak)
    values -= math.log(total)
    return np.clip(values, LOWEST_LOGPROB, 0.0)


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone, on every machine."""
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    return float(generator.random())
