"""The vocabulary in shares: what a few numbers of each decide is what all logits decide."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.plan import Span
from runtime.chosen import Chosen
from runtime.drawing import Known, decide
from runtime.heads.question import Choice, Want, draw, merged, tell, want
from runtime.history import History
from runtime.sampling import Sampling

Row = npt.NDArray[np.float32]


def told(logits: Row, cuts: list[int], wanted: Want) -> Known:
    edges = [0, *cuts, len(logits)]
    spans = [Span(first, last) for first, last in itertools.pairwise(edges)]
    tells = [tell(logits[s.first : s.last], s, wanted.within(s)) for s in spans]
    assert None not in tells
    return merged([one for one in tells if one is not None], wanted, len(logits))


def decided(logits: Row, cuts: list[int], choice: Choice) -> tuple[Chosen, bool]:
    """As the lead decides, and whether the first question was enough."""
    wanted = want(choice)
    known = told(logits, cuts, wanted)
    chosen = decide(known, choice.sampling, choice.position, choice.history)
    if chosen is not None:
        return chosen, True
    known = told(logits, cuts, wanted.everything(len(logits)))
    chosen = decide(known, choice.sampling, choice.position, choice.history)
    assert chosen is not None
    return chosen, False


def same(one: Chosen, other: Chosen) -> bool:
    return (
        one.token == other.token
        and [token for token, _ in one.top] == [token for token, _ in other.top]
        and (one.logprob is None) == (other.logprob is None)
        and math.isclose(one.logprob or 0.0, other.logprob or 0.0, rel_tol=1e-12, abs_tol=1e-12)
        and np.allclose([p for _, p in one.top], [p for _, p in other.top], rtol=0, atol=1e-11)
    )


rows = st.one_of(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=60),  # equals
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60),
    st.tuples(st.integers(300, 3000), st.integers(0, 9), st.sampled_from([0.1, 1.0, 6.0])).map(
        lambda of: (of[2] * np.random.default_rng(of[1]).standard_normal(of[0])).tolist()
    ),
    st.lists(st.sampled_from([1e30, -1e30, 0.0]), min_size=1, max_size=20),
)


@st.composite
def cases(draw_of: st.DrawFn) -> tuple[Row, list[int], Choice]:
    logits = np.array(draw_of(rows), dtype=np.float32)
    size = len(logits)
    inner = st.integers(1, max(1, size - 1))
    cuts = draw_of(st.sets(inner, max_size=4)) if size > 1 else set()
    ids = st.integers(0, size - 1)
    sampling = Sampling(
        temperature=draw_of(st.sampled_from([0.0, 1e-310, 0.3, 1.0, 10.0])),
        top_k=draw_of(st.none() | st.sampled_from([1, 2, 40, 5000])),
        top_p=draw_of(st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01])),
        seed=draw_of(st.integers(0, 1 << 40)),
        min_p=draw_of(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
        repetition_penalty=draw_of(st.sampled_from([1.0, 1.0, 1.3, 0.5])),
        frequency_penalty=draw_of(st.sampled_from([0.0, 0.0, 1.5, -2.0])),
        presence_penalty=draw_of(st.sampled_from([0.0, 0.0, 0.5])),
        logit_bias=tuple(draw_of(st.lists(st.tuples(ids, st.floats(-100, 100)), max_size=5))),
        logprobs=draw_of(st.none() | st.sampled_from([0, 1, 20])),
    )
    said = draw_of(st.lists(ids, max_size=8))
    history = History(draw_of(st.lists(ids, max_size=8)), said)
    return logits, sorted(cuts), Choice(sampling, draw_of(st.integers(0, 500)), history)


@given(cases())
@settings(deadline=None, max_examples=600)
def test_shares_decide_as_the_whole_does(case: tuple[Row, list[int], Choice]) -> None:
    logits, cuts, choice = case
    everything = Known(logits, len(logits))
    expected = decide(everything, choice.sampling, choice.position, choice.history)
    assert expected is not None
    chosen, _ = decided(logits, cuts, choice)
    assert same(chosen, expected), (chosen, expected)
    assert same(draw(torch.from_numpy(logits), choice), expected)


def test_the_first_of_equals_wherever_the_cut_is() -> None:
    logits = np.array([0, 2, 1, 2, 2], dtype=np.float32)
    for cut in range(1, 5):
        assert decided(logits, [cut], Choice(Sampling(), 0, None)) == (Chosen(1), True)


def test_a_candidate_that_is_penalised_makes_room_for_the_next() -> None:
    """A share told of its best one only, and a penalty took it: the next must be known as well."""
    logits = np.array([5.0, 4.0, 3.0, 2.0], dtype=np.float32)
    choice = Choice(Sampling(repetition_penalty=10.0), 9, History([0, 1]))
    assert decided(logits, [2], choice) == (Chosen(2), True)
    assert decided(logits, [3], choice) == (Chosen(2), True)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(logprobs=20),
        Sampling(1.0, top_k=64, top_p=0.95),
        Sampling(1.0, top_k=5000),
        Sampling(1.0, top_k=1, repetition_penalty=1.2),
    ],
    ids=str,
)
def test_one_question_is_always_enough_without_a_long_tail(sampling: Sampling) -> None:
    generator = np.random.default_rng(2)
    for position in range(50):
        logits = generator.standard_normal(2000).astype(np.float32)
        choice = Choice(sampling, position, History(range(0, 2000, 7)))
        assert decided(logits, [700, 900], choice)[1]


def test_one_question_is_mostly_enough_for_a_draw_of_all() -> None:
    """Logits about as uneven as a model's: few tokens in a hundred lie between the candidates."""
    generator = np.random.default_rng(3)
    logits = (4 * generator.standard_normal(20_000)).astype(np.float32)
    for sampling in (Sampling(1.0), Sampling(1.0, min_p=0.05), Sampling(0.8, top_p=0.9)):
        enough = [decided(logits, [10_000], Choice(sampling, at, None))[1] for at in range(200)]
        assert sum(enough) > 150


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_share_whose_logits_are_not_finite_tells_nothing(bad: float) -> None:
    logits = np.array([1.0, bad, 0.0], dtype=np.float32)
    for best in (1, 2, 3):
        none = np.empty(0, dtype=np.int64)
        assert tell(logits, Span(5, 8), Want(best, none)) is None
