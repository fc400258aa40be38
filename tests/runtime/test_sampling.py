"""Sampling: greedy, filtered, and the same on every device for the same seed and position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError, GenerationFailed
from runtime.sampling import MAX_SEED, Sampling, sample

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 2.0])


def draws(sampling: Sampling, logits: torch.Tensor = LOGITS, count: int = 4000) -> Counter[int]:
    return Counter(sample(logits, sampling, position) for position in range(count))


def test_greedy_takes_the_first_of_equals() -> None:
    assert sample(LOGITS, Sampling(), 0) == 1


def test_draws_follow_the_probabilities() -> None:
    counts = draws(Sampling(temperature=0.7, seed=3))
    expected = torch.softmax(LOGITS.double() / 0.7, dim=0)
    measured = torch.tensor([counts[token] / 4000 for token in range(5)])
    assert torch.allclose(measured.double(), expected, atol=0.03)


def test_top_k_and_top_p_leave_the_best() -> None:
    assert set(draws(Sampling(temperature=1, top_k=2))) == {1, 4}
    assert set(draws(Sampling(temperature=1, top_k=1))) == {1}  # the first of equals
    # The probabilities are 0.40, 0.40, 0.15, 0.05, 0.02.
    assert set(draws(Sampling(temperature=1, top_p=0.5))) == {1, 4}
    assert set(draws(Sampling(temperature=1, top_p=0.9))) == {1, 2, 4}
    assert set(draws(Sampling(temperature=1, top_p=1e-9))) == {1}


@given(seed=st.integers(0, MAX_SEED), position=st.integers(0, 1 << 20))
def test_a_replay_draws_the_same(seed: int, position: int) -> None:
    sampling = Sampling(temperature=1, seed=seed)
    assert sample(LOGITS, sampling, position) == sample(LOGITS, sampling, position)


def test_the_draw_is_pinned() -> None:
    """The same on every machine and in every version, or devices of one home would disagree."""
    logits = torch.zeros(1000)
    sampling = Sampling(temperature=1, seed=42)
    assert [sample(logits, sampling, position) for position in range(6)] == [
        820,
        443,
        426,
        712,
        768,
        299,
    ]


def test_other_arithmetic_draws_the_same() -> None:
    """Another device's rounding moves logits by a millionth, and two tokens change their order."""
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.standard_normal(500).astype(np.float32))
    logits[100] = logits[200] + 1e-7
    noise = torch.from_numpy(1e-6 * generator.standard_normal(500).astype(np.float32))
    sampling = Sampling(temperature=1, seed=1)
    pairs = [
        (sample(logits, sampling, position), sample(logits + noise, sampling, position))
        for position in range(500)
    ]
    assert sum(here != there for here, there in pairs) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_finite_is_no_token(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[3] = bad
    with pytest.raises(GenerationFailed, match="not finite"):
        sample(logits, Sampling(temperature=temperature), 0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": -0.1}, "temperature lies between"),
        ({"temperature": float("nan")}, "temperature lies between"),
        ({"temperature": 11.0}, "temperature lies between"),
        ({"top_k": 0}, "top_k is at least 1"),
        ({"top_p": 0.0}, "top_p lies above 0"),
        ({"top_p": 1.1}, "top_p lies above 0"),
        ({"seed": -1}, "seed lies between"),
        ({"seed": MAX_SEED + 1}, "seed lies between"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Sampling(**settings)  # type: ignore[arg-type]


def test_extreme_logits_and_temperatures() -> None:
    logits = torch.tensor([1e30, -1e30, 1e30])
    assert set(draws(Sampling(temperature=10), logits, 50)) == {0, 2}
    assert set(draws(Sampling(temperature=1e-6), LOGITS, 50)) == {1, 4}
