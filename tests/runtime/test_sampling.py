"""Sampling: greedy, filtered, and the same on every device for the same seed and position."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ConfigError, GenerationFailed
from runtime.chosen import LOWEST_LOGPROB, Chosen
from runtime.heads import question
from runtime.heads.question import Choice
from runtime.history import History
from runtime.sampling import MAX_SEED, Sampling

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 2.0])


def draw(
    logits: torch.Tensor, sampling: Sampling, position: int, history: History | None = None
) -> Chosen:
    return question.draw(logits, Choice(sampling, position, history))


def sample(
    logits: torch.Tensor, sampling: Sampling, position: int, history: History | None = None
) -> int:
    return draw(logits, sampling, position, history).token


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
    ("named", "text"),
    [
        ({"temperature": -0.1}, "temperature lies between"),
        ({"temperature": float("nan")}, "temperature lies between"),
        ({"temperature": 11.0}, "temperature lies between"),
        ({"top_k": 0}, "top_k is at least 1"),
        ({"top_p": 0.0}, "top_p lies above 0"),
        ({"top_p": 1.1}, "top_p lies above 0"),
        ({"seed": -1}, "seed lies between"),
        ({"seed": MAX_SEED + 1}, "seed lies between"),
        ({"min_p": -0.1}, "min_p lies between 0 and 1"),
        ({"min_p": float("nan")}, "min_p lies between 0 and 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty lies above 0"),
        ({"repetition_penalty": 11.0}, "repetition_penalty lies above 0"),
        ({"frequency_penalty": 2.1}, "frequency_penalty lies between -2 and 2"),
        ({"presence_penalty": float("inf")}, "presence_penalty lies between -2 and 2"),
        ({"logit_bias": ((3, 101.0),)}, "logit_bias of token 3 lies between -100 and 100"),
        ({"logit_bias": ((3, 1.0),) * 301}, "at most 300 tokens; got 301"),
        ({"logprobs": 21}, "logprobs lies between 0 and 20"),
        ({"logprobs": -1}, "logprobs lies between 0 and 20"),
    ],
)
def test_impossible_settings_are_refused(named: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Sampling(**named)


def test_extreme_logits_and_temperatures() -> None:
    logits = torch.tensor([1e30, -1e30, 1e30])
    assert set(draws(Sampling(temperature=10), logits, 50)) == {0, 2}
    assert set(draws(Sampling(temperature=1e-6), LOGITS, 50)) == {1, 4}


def test_min_p_leaves_what_is_near_the_best() -> None:
    # The probabilities are 0.40, 0.40, 0.15, 0.05, 0.02.
    assert set(draws(Sampling(temperature=1, min_p=0.5))) == {1, 4}
    assert set(draws(Sampling(temperature=1, min_p=0.3))) == {1, 2, 4}
    assert set(draws(Sampling(temperature=1, min_p=1))) == {1, 4}
    assert set(draws(Sampling(temperature=1, top_k=1, min_p=0.1))) == {1}


def test_the_repetition_penalty_divides_above_zero_and_multiplies_below() -> None:
    logits = torch.tensor([1.9, 2.0, -1.0, -1.1])
    history = History(prompt=[1], generated=[2])
    assert sample(logits, Sampling(repetition_penalty=1.5), 2, history) == 0
    only_low = torch.tensor([-9.0, -9.0, -1.0, -1.1])
    assert sample(only_low, Sampling(repetition_penalty=1.5), 2, history) == 3
    assert sample(logits, Sampling(repetition_penalty=0.5), 2, history) == 1  # a reward


def test_frequency_counts_and_presence_does_not() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    once, thrice = History([0, 0, 0], [0]), History([], [0, 0, 0])
    assert sample(logits, Sampling(frequency_penalty=0.5), 4, once) == 0
    assert sample(logits, Sampling(frequency_penalty=0.5), 4, thrice) == 1
    assert sample(logits, Sampling(presence_penalty=0.5), 4, thrice) == 0
    assert sample(logits, Sampling(presence_penalty=1.5), 4, thrice) == 1
    # The prompt counts for neither.
    assert sample(logits, Sampling(presence_penalty=1.5), 4, History([0])) == 0


def test_a_bias_forces_and_bans() -> None:
    assert sample(LOGITS, Sampling(logit_bias=((3, 100.0),)), 0) == 3
    assert sample(LOGITS, Sampling(logit_bias=((1, -100.0), (4, -100.0))), 0) == 2
    assert set(draws(Sampling(temperature=1, logit_bias=((3, 100.0),)), count=50)) == {3}


def test_the_logits_stay_as_they_are() -> None:
    before = LOGITS.clone()
    sampling = Sampling(repetition_penalty=2, logit_bias=((1, 5.0),), logprobs=2)
    draw(LOGITS, sampling, 3, History([1], [4]))
    assert torch.equal(LOGITS, before)


def test_settings_that_do_nothing_draw_as_before() -> None:
    """The pinned draws above hold for whoever names the new options with their defaults."""
    plain = Sampling(temperature=0.9, seed=5)
    named = Sampling(temperature=0.9, seed=5, min_p=0.0, repetition_penalty=1.0, logprobs=3)
    assert draws(plain, count=200) == draws(named, count=200)


@given(
    tokens=st.lists(st.integers(0, 4), max_size=12),
    cut=st.integers(0, 12),
    seed=st.integers(0, 1000),
)
def test_a_replay_with_penalties_draws_the_same(tokens: list[int], cut: int, seed: int) -> None:
    """Another device gets the first tokens with the opening and has not chosen them itself."""
    sampling = Sampling(1.0, None, 0.9, seed, 0.01, 1.3, 0.4, 0.2, ((2, 1.0),))
    prompt, position = [0, 3], 2 + len(tokens)
    here, there = History(prompt), History.unpack(History(prompt, tokens[:cut]).pack())
    for index, token in enumerate(tokens):
        here.chose(2 + index, token)
        if index >= cut:
            there.chose(2 + index, token)
    assert sample(LOGITS, sampling, position, here) == sample(LOGITS, sampling, position, there)


def test_a_penalty_without_a_history_is_no_silent_guess() -> None:
    with pytest.raises(GenerationFailed, match="was not told what came before"):
        sample(LOGITS, Sampling(presence_penalty=1), 0)


@pytest.mark.parametrize("token", [5, -1, 1 << 40])
def test_a_bias_for_a_token_that_is_none(token: int) -> None:
    with pytest.raises(GenerationFailed, match="between 0 and 4"):
        sample(LOGITS, Sampling(logit_bias=((token, 1.0),)), 0)


def test_a_history_of_another_model() -> None:
    with pytest.raises(GenerationFailed, match="between 0 and 4"):
        sample(LOGITS, Sampling(repetition_penalty=1.1), 0, History([7]))


def test_logprobs_are_the_models_own() -> None:
    sampling = Sampling(temperature=0.5, top_k=1, logprobs=3, logit_bias=((0, 100.0),))
    chosen = draw(LOGITS, sampling, 0)
    expected = torch.log_softmax(LOGITS.double(), dim=0)
    assert chosen.token == 0
    assert chosen.logprob == pytest.approx(float(expected[0]))
    assert [token for token, _ in chosen.top] == [1, 4, 2]  # the lower id first among equals
    assert [logprob for _, logprob in chosen.top] == pytest.approx(expected[[1, 4, 2]].tolist())


def test_logprobs_only_where_they_are_asked_for() -> None:
    assert draw(LOGITS, Sampling(), 0).logprob is None
    chosen = draw(LOGITS, Sampling(logprobs=0), 0)
    assert chosen.logprob == pytest.approx(float(torch.log_softmax(LOGITS.double(), 0)[1]))
    assert chosen.top == ()
    assert len(draw(LOGITS, Sampling(logprobs=20), 0).top) == 5  # no more than there are


def test_an_impossible_token_has_the_lowest_logprob() -> None:
    chosen = draw(torch.tensor([1e30, -1e30]), Sampling(logit_bias=(), logprobs=2), 0)
    assert chosen.top[1] == (1, LOWEST_LOGPROB)


def test_against_transformers() -> None:
    """The same logits come of its processors, where it has one."""
    processors = pytest.importorskip("transformers.generation.logits_process")
    generator = np.random.default_rng(4)
    logits = torch.from_numpy(3 * generator.standard_normal(200).astype(np.float32))
    said = generator.integers(0, 200, 30).tolist()
    ids = torch.tensor([said])
    sampling = Sampling(0.7, 40, 0.9, 0, 0.05, 1.3)
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.3)(ids, logits[None].clone())
    theirs = processors.TemperatureLogitsWarper(0.7)(ids, theirs)
    theirs = processors.TopKLogitsWarper(40)(ids, theirs)
    theirs = processors.TopPLogitsWarper(0.9)(ids, theirs)
    theirs = processors.MinPLogitsWarper(0.05)(ids, theirs)[0]
    drawn = {sample(logits, sampling, position, History(said)) for position in range(4000)}
    assert drawn <= set(torch.isfinite(theirs).nonzero()[:, 0].tolist())
    likely = (torch.softmax(theirs, 0) > 0.004).nonzero()[:, 0].tolist()
    assert set(likely) <= drawn


@given(
    # Equal, or far enough apart that their probabilities differ as well.
    values=st.lists(st.integers(-900, 900).map(lambda n: n / 100), min_size=1, max_size=600),
    top_k=st.none() | st.integers(1, 700),
    top_p=st.floats(0.01, 1.0),
    position=st.integers(0, 1000),
)
@settings(deadline=None)
def test_finding_the_best_without_sorting_all_changes_no_draw(
    values: list[float], top_k: int | None, top_p: float, position: int
) -> None:
    sampling = Sampling(temperature=0.8, top_k=top_k, top_p=top_p, seed=9)
    assert sample(torch.tensor(values), sampling, position) in allowed(values, top_k, top_p)


def allowed(values: list[float], top_k: int | None, top_p: float) -> set[int]:
    """By the book: all sorted; and one more, for a sum that falls on the bound by a rounding."""
    probabilities = torch.softmax(torch.tensor(values).double() / 0.8, 0)
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))[:top_k]
    total, kept = 0.0, []
    for token in order:
        kept.append(token)
        total += float(probabilities[token] / probabilities[order].sum())
        if total > top_p + 1e-9:
            break
    return set(kept)
