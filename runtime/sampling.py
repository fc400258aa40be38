"""From logits to a token: the same token for the same seed and position, on whichever device.

In this order, as transformers has it where it has them: repetition penalty, frequency and presence
penalty, logit bias; with temperature 0 the best of what came of it; else temperature, top k, top p,
min p, and a draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mesh.errors import ConfigError, GenerationFailed
from runtime.chosen import LOWEST_LOGPROB, MAX_LOGPROBS, Chosen
from runtime.history import History

MAX_TEMPERATURE: Final = 10.0
MAX_REPETITION_PENALTY: Final = 10.0
MAX_PENALTY: Final = 2.0  # OpenAI's range, as that of the bias
MAX_BIAS: Final = 100.0
MAX_BIASED_TOKENS: Final = 300
MAX_SEED: Final = (1 << 63) - 1

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Raises ConfigError for a value out of its range."""

    temperature: float = 0.0  # 0: always the most probable token; 1: as the model was trained
    top_k: int | None = None  # only the k most probable tokens
    top_p: float = 1.0  # only the fewest tokens that together have this probability
    seed: int = 0
    min_p: float = 0.0  # only tokens with this share of the best one's probability
    repetition_penalty: float = 1.0  # divides the logit of all that came before, or multiplies it
    frequency_penalty: float = 0.0  # taken from a token's logit for each time it was generated
    presence_penalty: float = 0.0  # taken once from that of each token that was generated
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to these tokens' logits
    logprobs: int | None = None  # so many most probable tokens are told with each; None: no logprob

    def __post_init__(self) -> None:
        _between("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is at least 1, or left out; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p lies above 0 and is at most 1; got {self.top_p}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed lies between 0 and {MAX_SEED}; got {self.seed}")
        _between("min_p", self.min_p, 0.0, 1.0)
        if not 0 < self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise ConfigError(
                f"repetition_penalty lies above 0 and is at most {MAX_REPETITION_PENALTY:g}, "
                f"and 1 is none; got {self.repetition_penalty}"
            )
        _between("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _between("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise ConfigError(
                f"logit_bias names at most {MAX_BIASED_TOKENS} tokens; got {len(self.logit_bias)}"
            )
        for token, bias in self.logit_bias:
            _between(f"the logit_bias of token {token}", bias, -MAX_BIAS, MAX_BIAS)
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError(
                f"logprobs lies between 0 and {MAX_LOGPROBS}, or is left out; got {self.logprobs}"
            )

    @property
    def needs_history(self) -> bool:
        """Whether the tokens so far matter, and not only the logits."""
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty - 1.0)
        return any(penalties)


def draw(
    logits: Tensor, sampling: Sampling, position: int, history: History | None = None
) -> Chosen:
    """What `sample` draws; where asked for, with the logprobs of the model's own distribution:
    before penalties, bias, temperature and cuts, so that they say what the model thinks.
    """
    token = sample(logits, sampling, position, history)
    if sampling.logprobs is None:
        return Chosen(token)
    values = logits.numpy().astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    values = np.clip(values, LOWEST_LOGPROB, 0.0)
    top = tuple((int(one), float(values[one])) for one in _best(values, sampling.logprobs))
    return Chosen(token, float(values[token]), top)


def sample(
    logits: Tensor, sampling: Sampling, position: int, history: History | None = None
) -> int:
    """The token for `position` from logits [V], given what came before where a penalty is on.

    Nothing else is remembered from token to token: a replay, here or elsewhere, draws the same.
    Raises GenerationFailed unless all logits are finite, and for a bias or a history of tokens that
    the model does not have.
    """
    least, greatest = torch.aminmax(logits)  # no number where any of all is none
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise GenerationFailed(
            "the model's output is not finite: the file is damaged or a device computes wrongly; "
            "compare the file's hash with its source"
        )
    values = _adjusted(logits.numpy(), sampling, position, history)
    if sampling.temperature == 0:
        return int(values.argmax())  # the first of equals
    kept, weights = _nucleus(values, sampling)
    # Added up in the order of ids, not of probability: two tokens of nearly the same probability
    # may change places from one device's arithmetic to another's, and then nothing else moves.
    order = np.argsort(kept, kind="stable")  # quick where they are in order already
    ids, cumulated = kept[order], np.cumsum(weights[order])
    drawn = _uniform(sampling.seed, position) * cumulated[-1]
    return int(ids[min(np.searchsorted(cumulated, drawn, side="right"), len(ids) - 1)])


def _adjusted(
    logits: npt.NDArray[np.float32], sampling: Sampling, position: int, history: History | None
) -> Floats:
    """The logits after penalties and bias; the very same array where there are none."""
    if not sampling.needs_history and not sampling.logit_bias:
        return logits
    values = logits.astype(np.float64)
    if sampling.needs_history:
        if history is None:
            raise GenerationFailed(
                "a penalty is on, and the stage that chooses tokens was not told what came before"
            )
        seen = _known(history.seen(position), values)
        penalty = sampling.repetition_penalty
        values[seen] = np.where(values[seen] < 0, values[seen] * penalty, values[seen] / penalty)
        said, counts = history.generated(position)
        values[said] -= sampling.frequency_penalty * counts + sampling.presence_penalty
    if sampling.logit_bias:
        biased = _known(np.array([token for token, _ in sampling.logit_bias]), values)
        np.add.at(values, biased, [bias for _, bias in sampling.logit_bias])
    return values


def _known(ids: npt.NDArray[np.int64], values: Floats) -> npt.NDArray[np.int64]:
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(values):
        raise GenerationFailed(
            f"token ids lie between 0 and {len(values) - 1}; a bias or a penalty names another"
        )
    return ids


def _nucleus(
    logits: Floats, sampling: Sampling
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The ids that top_k, top_p and min_p leave, and their probabilities times any one number."""
    scaled = logits.astype(np.float64) / sampling.temperature
    scaled -= scaled.max()
    weights = np.exp(scaled)  # of the best: 1
    if sampling.top_k is None and sampling.top_p == 1:
        # What is 40 below the best has less than 1e-17 of its probability: it cannot be drawn.
        ids = np.flatnonzero(scaled > -40.0)
    else:
        ids = _most_probable(weights, sampling)
    ids = ids[weights[ids] >= sampling.min_p]
    return ids, weights[ids]


def _most_probable(weights: npt.NDArray[np.float64], sampling: Sampling) -> npt.NDArray[np.int64]:
    """Those that top_k and then top_p leave, most probable first."""
    if sampling.top_k is not None:
        ids = _best(weights, sampling.top_k)
        return ids[: _count(weights[ids], float(weights[ids].sum()), sampling.top_p)]
    total = float(weights.sum())
    for guess in (256, 8192):  # mostly a few hundred are enough, and sorting all takes 0.1 s
        ids = _best(weights, guess)
        count = _count(weights[ids], total, sampling.top_p)
        if count < len(ids):
            return ids[:count]
    ids = _best(weights, len(weights))
    return ids[: _count(weights[ids], total, sampling.top_p)]


def _count(weights: npt.NDArray[np.float64], total: float, top_p: float) -> int:
    """How many of `weights`, the largest first, are the fewest that have this share of `total`."""
    if top_p == 1:
        return len(weights)
    return int(np.searchsorted(np.cumsum(weights) / total, top_p)) + 1


def _best(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """The ids of the `count` largest, largest first, the lower id first among equals."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # Sorting a vocabulary of 262,144 takes 20 ms; finding the bound first takes 2.
    bound = np.partition(values, -count)[-count]
    ids = np.flatnonzero(values >= bound)
    return ids[np.argsort(-values[ids], kind="stable")][:count]


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone, on every machine."""
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    return float(generator.random())


def _between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also for what is not a number
        raise ConfigError(f"{name} lies between {least:g} and {most:g}; got {value}")
