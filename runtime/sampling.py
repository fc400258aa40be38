"""From logits to a token: the same token for the same seed and position, on whichever device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mesh.errors import ConfigError, GenerationFailed

MAX_TEMPERATURE: Final = 10.0
MAX_SEED: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Raises ConfigError for a value out of its range."""

    temperature: float = 0.0  # 0: always the most probable token; 1: as the model was trained
    top_k: int | None = None  # only the k most probable tokens
    top_p: float = 1.0  # only the fewest tokens that together have this probability
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ConfigError(
                f"temperature lies between 0 and {MAX_TEMPERATURE:g}; got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is at least 1, or left out; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p lies above 0 and is at most 1; got {self.top_p}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed lies between 0 and {MAX_SEED}; got {self.seed}")


def sample(logits: Tensor, sampling: Sampling, position: int) -> int:
    """The token for `position` from logits [V]. Raises GenerationFailed unless all are finite.

    Nothing is remembered from token to token: a replay, here or elsewhere, draws the same.
    """
    if not torch.isfinite(logits).all():
        raise GenerationFailed(
            "the model's output is not finite: the file is damaged or a device computes wrongly; "
            "compare the file's hash with its source"
        )
    values = logits.numpy()
    if sampling.temperature == 0:
        return int(values.argmax())  # the first of equals
    kept, probabilities = _nucleus(values, sampling)
    # Added up in the order of ids, not of probability: two tokens of nearly the same probability
    # may change places from one device's arithmetic to another's, and then nothing else moves.
    order = np.argsort(kept)
    ids, cumulated = kept[order], np.cumsum(probabilities[order])
    drawn = _uniform(sampling.seed, position) * cumulated[-1]
    return int(ids[min(np.searchsorted(cumulated, drawn, side="right"), len(ids) - 1)])


def _nucleus(
    logits: npt.NDArray[np.float32], sampling: Sampling
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The ids that top_k and top_p leave, most probable first, and their probabilities."""
    scaled = logits.astype(np.float64) / sampling.temperature
    scaled -= scaled.max()
    # What is 40 below the best has less than 1e-17 of its probability: it cannot be drawn.
    ids = np.flatnonzero(scaled > -40.0)
    ids = ids[np.argsort(-scaled[ids], kind="stable")][: sampling.top_k]
    probabilities = np.exp(scaled[ids])
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        count = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1
        ids, probabilities = ids[:count], probabilities[:count]
    return ids, probabilities


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position alone, on every machine."""
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    return float(generator.random())
