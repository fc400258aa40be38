"""Refilling, as arithmetic: what is computed again, by whom, and when all of it is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from mesh.ids import Epoch, ModelId, PlanId
from planner.plan import Capacity, Job, Plan, Prediction, Share, Span, Split, Stage
from runtime.refill import MAX_LAYERS, Held, Move, Refill, Run, in_common, moves, refill, stage_with
from tests.runtime.room import peer

LAYERS = 6


def plan(*cuts: int) -> Plan:
    """Of stages cut before these layers, each on a device of its own."""
    stages = [
        Stage(Span(first, last), (Share(peer(index)),))
        for index, (first, last) in enumerate(pairwise((0, *cuts, LAYERS)))
    ]
    return Plan(
        epoch=Epoch(1, peer(0)),
        plan_id=PlanId.new(),
        model=ModelId("0" * 64),
        model_name="of a test",
        job=Job.RUN,
        stages=tuple(stages),
        capacity=Capacity(4, 4096),
        reason="for a test",
        predicted=Prediction(0.0, 0.0, 0, ()),
    )


def held(layers: int, tokens: int, log_layer: int = 0, log_end: int = 0, least: int = 0) -> Held:
    return Held((tokens,) * layers, least, log_layer, 0, log_end)


THREE = plan(2, 4)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            (held(2, 101, 2, 101), held(2, 0), held(2, 100)),
            Refill(100, (Run(Span(2, 4), 0),)),
        ),
        (
            (held(2, 0), held(2, 101, 4, 101), held(2, 100)),
            Refill(100, (Run(Span(0, 2), 0),)),
        ),
        (
            (held(2, 101, 2, 101), held(2, 101, 4, 101), held(2, 0)),
            Refill(100, (Run(Span(4, 6), 0),)),
        ),
        (
            (held(2, 0), held(2, 100, 4, 100), held(2, 0)),
            Refill(100, (Run(Span(0, 2), 0), Run(Span(4, 6), 0))),
        ),
        ((held(2, 101, 2, 101), held(2, 101, 4, 101), held(2, 100)), Refill(100)),
        ((held(2, 0), held(2, 0), held(2, 0)), Refill(0)),
        ((held(2, 101), held(2, 0), held(2, 100)), Refill(0)),
        ((held(2, 100, 2, 99), held(2, 0), held(2, 100)), Refill(0)),
        ((held(2, 300, 2, 300, least=101), held(2, 0), held(2, 100)), Refill(0)),
        (
            (held(2, 100, 2, 100), held(2, 64), held(2, 100)),
            Refill(100, (Run(Span(2, 4), 64),)),
        ),
        ((Held(), held(2, 100), held(2, 100)), Refill(0)),
        ((held(3, 100), held(2, 100), held(1, 100)), Refill(0)),
    ],
    ids=[
        "one in the middle is fed by the one before",
        "the first is fed by the owner",
        "the last is fed by the one before",
        "two that are apart, one after the other",
        "all have it",
        "nobody has it",
        "no log",
        "a log that is too short",
        "one that cannot go back so far",
        "one that goes on where it was",
        "a model that keeps nothing",
        "garbage",
    ],
)
def test_the_least_that_can_be_computed(stages: tuple[Held, ...], expected: Refill) -> None:
    assert refill(THREE, stages, 100) == expected


def test_a_device_that_took_its_neighbours_layers_feeds_itself() -> None:
    grown = Held((100, 100, 0), 0, 2, 0, 100)
    assert refill(plan(3), (grown, Held((0, 100, 100))), 100) == Refill(100, (Run(Span(2, 4), 0),))


def test_layers_that_several_devices_share_are_not_fed_by_a_log() -> None:
    shared = replace(THREE.stages[1], shares=(Share(peer(1)), Share(peer(3))), split=Split.TENSOR)
    of = replace(THREE, stages=(THREE.stages[0], shared, THREE.stages[2]))
    stages = (held(2, 100, 2, 100), in_common([held(2, 0), held(2, 0)]), held(2, 100))
    assert refill(of, stages, 100) == Refill(0)
    known = in_common([held(2, 64), held(2, 128)])
    assert known == held(2, 64)
    assert refill(of, (held(2, 100), known, held(2, 100)), 100) == Refill(64)


@given(data=st.data())
def test_afterwards_all_layers_have_as_much(data: st.DataObject) -> None:
    """Of what the stages may say, whatever it is: every row a layer computes is one that it lacks,
    comes from a log or a layer that has it, and in the end none is missing.
    """
    cuts = sorted(data.draw(st.sets(st.integers(1, LAYERS - 1))))
    of, total = plan(*cuts), data.draw(st.integers(0, 50))
    stages = []
    for stage in of.stages:
        count = len(stage.layers)
        layers = data.draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
        at = data.draw(st.integers(stage.layers.first + 1, stage.layers.last))
        first, last = sorted(data.draw(st.tuples(st.integers(0, 60), st.integers(0, 60))))
        stages.append(Held(tuple(layers), data.draw(st.sampled_from([0, 0, 40])), at, first, last))
    has = [tokens for one in stages for tokens in one.layers]
    found = refill(of, stages, total)
    assert 0 <= found.until <= total
    for run in found.runs:
        for layer in range(run.layers.first, run.layers.last):
            assert run.start in (0, has[layer])
            has[layer] = found.until
        if run.layers.first:
            giver = stages[stage_with(of, run.layers.first - 1)]
            assert giver.log_layer == run.layers.first
            assert giver.log_first <= run.start < found.until <= giver.log_end
    assert all(tokens >= found.until for tokens in has)


def test_what_no_stage_would_say_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not negative"):
        Held((1, -1))
    with pytest.raises(ProtocolError, match="at most"):
        Held((0,) * (MAX_LAYERS + 1))


def on(which: Plan, *numbers: int) -> Plan:
    """The same stages on other devices."""
    stages = zip(which.stages, numbers, strict=True)
    return replace(which, stages=tuple(replace(s, shares=(Share(peer(n)),)) for s, n in stages))


@pytest.mark.parametrize(
    ("after", "stages", "expected"),
    [
        (on(THREE, 0, 3, 2), (held(2, 9), held(2, 0), held(2, 9)), (Move(1, Span(2, 4), peer(1)),)),
        (
            on(plan(3), 0, 2),
            (Held((9, 9, 0)), Held((0, 9, 9))),
            (Move(0, Span(2, 3), peer(1)), Move(1, Span(3, 4), peer(1))),
        ),
        (
            on(plan(), 3),
            (held(6, 0),),
            tuple(Move(0, Span(n, n + 2), peer(n // 2)) for n in (0, 2, 4)),
        ),
        (on(THREE, 0, 3, 2), (held(2, 9), held(2, 8), held(2, 9)), ()),
        (on(THREE, 0, 1, 2), (held(2, 9), held(2, 0), held(2, 9)), ()),
        (on(THREE, 0, 3, 2), (held(2, 9), Held(), held(2, 9)), ()),
    ],
    ids=[
        "to a spare",
        "to both neighbours",
        "from three to one",
        "what all have is not fetched",
        "from itself nobody fetches",
        "a stage that tells of no layers takes none",
    ],
)
def test_what_another_device_had_is_fetched(
    after: Plan, stages: tuple[Held, ...], expected: tuple[Move, ...]
) -> None:
    assert moves(after, stages, THREE, 8) == expected


@pytest.mark.parametrize("shared", ["before", "after"])
def test_what_several_devices_share_is_not_fetched(shared: str) -> None:
    both = (Share(peer(1)), Share(peer(3)))
    cut = Stage(Span(2, 4), both, Split.HYBRID)
    of_both = replace(THREE, stages=(THREE.stages[0], cut, THREE.stages[2]))
    before, after = (of_both, on(THREE, 0, 4, 2)) if shared == "before" else (THREE, of_both)
    assert moves(after, (held(2, 9), held(2, 0), held(2, 9)), before, 8) == ()
