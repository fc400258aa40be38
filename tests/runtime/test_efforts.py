"""Efforts: what turns took, apart for tokens and prompts, whatever came in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind
from planner.plan import Plan, Span, Split
from runtime.chores import Chores
from runtime.efforts import Turn, of_prompts, of_tokens
from runtime.meter import WINDOW, Meter
from runtime.stage import Slice
from runtime.weights import Checkpoint
from tests.runtime.room import Room, make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma
from tests.runtime.walks.plans import group, grouped

PLAN = PlanId("b" * 32)
LAYERS = 4


class Clock:
    """Of a device whose turns are told by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.chores = Chores()
        self.meter = Meter(self.chores, lambda: self.now_s)
        self.meter.begin(PLAN)

    def turn(self, rows: int, seconds: float, *, waited_s: float = 0.0, used_s: float = 0) -> None:
        with self.meter.turn(PLAN, slices(rows), used_s):
            self.now_s += seconds
            self.chores.waited_s += waited_s


def slices(*rows: int) -> list[Slice]:
    return [Slice(SessionId.new(), 0, torch.zeros(n, 1), choose=True) for n in rows]


def header(size_bytes: int, plan: PlanId = PLAN) -> FrameHeader:
    epoch, session = Epoch(1, PeerId("a" * 64)), SessionId.new()
    kind, of = Kind.HIDDEN, DType.UINT8
    return FrameHeader(epoch, plan, session, kind, of, False, 0, 1, 0, 1, size_bytes)


def test_a_turn_is_computing_and_waiting() -> None:
    clock = Clock()
    clock.turn(1, 5.0, waited_s=2.0, used_s=100.0)
    (one,) = clock.meter.measured
    assert one.prompts is None
    assert one.tokens is not None
    assert (one.tokens.compute_s, one.tokens.wait_s) == (3.0, 2.0)


def test_the_time_between_two_turns_is_waiting_while_somebody_talks() -> None:
    clock = Clock()
    clock.turn(1, 1.0, used_s=100.0)
    clock.now_s += 4.0
    clock.turn(1, 1.0, used_s=100.0)
    (one,) = clock.meter.measured
    assert one.tokens is not None
    assert one.tokens.wait_s == 2.0  # the median of 0 and 4


def test_nobody_waits_before_the_conversation_came() -> None:
    clock = Clock()
    clock.turn(1, 1.0, used_s=100.0)
    clock.now_s += 1000.0
    clock.turn(1, 1.0, used_s=clock.now_s - 3.0)
    (one,) = clock.meter.measured
    assert one.tokens is not None
    assert one.tokens.wait_s == 1.5


def test_chores_for_others_between_two_turns_are_computing() -> None:
    clock = Clock()
    clock.turn(1, 1.0, used_s=100.0)
    clock.now_s += 4.0
    clock.chores.worked_s += 3.0
    clock.turn(1, 1.0, used_s=100.0)
    (one,) = clock.meter.measured
    assert one.tokens is not None
    assert (one.tokens.compute_s, one.tokens.wait_s) == (2.5, 0.5)


def test_a_turn_that_failed_does_not_count() -> None:
    clock = Clock()
    with pytest.raises(ValueError, match="lost"), clock.meter.turn(PLAN, slices(1), 100.0):
        raise ValueError("lost")
    assert clock.meter.measured[0].tokens is None


def test_a_slice_of_a_prompt_makes_the_turn_one_of_prompts() -> None:
    clock = Clock()
    with clock.meter.turn(PLAN, slices(1, 1, 60), None):
        clock.now_s += 6.2
    (one,) = clock.meter.measured
    assert one.tokens is None
    assert one.prompts is not None
    assert one.prompts.compute_s == pytest.approx(0.1)  # a row
    assert one.prompts.conversations == 3


def test_what_travels_belongs_to_the_turn_it_was_for() -> None:
    clock = Clock()
    clock.meter.received(PLAN, 10)  # for the turn to come
    with clock.meter.turn(PLAN, slices(1), None):
        clock.meter.received(PLAN, 5)
        clock.meter.sent(header(7), clock.now_s, 0.5)
        clock.meter.sent(header(3), clock.now_s - 1.0, 0.5)  # of no turn that is known
        clock.now_s += 1.0
    sent_s = clock.now_s
    clock.meter.received(PLAN, 1000)  # of the next
    (one,) = clock.meter.measured
    assert one.tokens is not None
    assert (one.tokens.sent_bytes, one.tokens.received_bytes) == (7, 15)
    assert one.tokens.wire_s == 0.5
    clock.now_s += 1.0
    clock.turn(60, 1.0)
    clock.meter.sent(header(100), sent_s, 0.25)  # acknowledged when the next turn is over
    (one,) = clock.meter.measured
    assert one.tokens is not None
    assert one.prompts is not None
    assert (one.tokens.sent_bytes, one.tokens.wire_s) == (107, 0.75)
    assert (one.prompts.sent_bytes, one.prompts.received_bytes) == (0, 1000 / 60)


def test_frames_of_plans_that_are_over_leave_nothing_behind() -> None:
    clock = Clock()
    clock.turn(1, 1.0)
    clock.meter.end(PLAN)
    clock.meter.received(PLAN, 10)
    clock.meter.sent(header(7), clock.now_s, 0.5)
    clock.turn(1, 1.0)
    assert clock.meter.measured == ()


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0.01, 9.0), st.floats(0, 1))))
def test_every_second_is_computing_or_waiting(turns: list[tuple[int, float, float]]) -> None:
    clock = Clock()
    for rows, seconds, part in turns:
        clock.now_s += part
        clock.turn(8 * rows, seconds, waited_s=part * seconds, used_s=100.0)
    kept = turns[-WINDOW:]
    (one,) = clock.meter.measured
    if not kept:
        assert one.prompts is None
        return
    assert one.prompts is not None
    assert one.prompts.turns == len(kept)
    rows = sum(8 * rows for rows, _, _ in kept)
    whole_s = sum(seconds + part for _, seconds, part in kept)
    assert (one.prompts.compute_s + one.prompts.wait_s) * rows == pytest.approx(whole_s)


@given(st.lists(st.floats(0.01, 9.0), min_size=3, max_size=9), st.integers(1, 8))
def test_one_slow_token_does_not_show(seconds: list[float], conversations: int) -> None:
    turns = [Turn(conversations, conversations, one, sent_bytes=conversations) for one in seconds]
    before, after = of_tokens(turns), of_tokens([*turns, Turn(1, 1, 1e6, sent_bytes=1)])
    assert before is not None
    assert after is not None
    assert before.sent_bytes == after.sent_bytes == 1
    assert after.compute_s <= max(seconds)


def test_of_nothing_nothing_is_known() -> None:
    assert of_tokens([]) is of_prompts([]) is None


# --- devices at work ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=1)
    return Checkpoint.open(Path(path))


def plans(checkpoint: Checkpoint) -> dict[str, Plan]:
    spec, layers = checkpoint.spec, Span(0, LAYERS)
    found = {"pipeline": make_plan(checkpoint, (2,))}
    for split in (Split.HYBRID, Split.TENSOR, Split.SEQUENCE):
        stage = group(layers, (0, 1), split, heads=spec.heads, columns=spec.ffn_size)
        found[split.value] = grouped(checkpoint, stage)
    return found


@pytest.mark.parametrize("name", ["pipeline", "hybrid", "tensor", "sequence"])
async def test_every_device_measures_what_it_does(checkpoint: Checkpoint, name: str) -> None:
    plan = plans(checkpoint)[name]
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(plan)
        prompt = [(7 * n) % 250 + 3 for n in range(90)]
        tokens = [token async for token in room.session(0, prompt, 12).tokens()]
        assert len(tokens) == 12
        for number in (0, 1):
            (one,) = room.devices[peer(number)].pipeline.meter.measured
            assert one.plan == plan.plan_id
            assert one.prompts is not None
            assert one.prompts.rows >= 30
            assert one.prompts.compute_s > 0
            assert one.prompts.received_bytes > 0 or (name, number) == ("pipeline", 0)
            if (name, number) == ("sequence", 1):  # the lead has the tokens for itself
                assert one.tokens is None
                continue
            assert one.tokens is not None
            assert one.tokens.compute_s > 0
            assert one.tokens.wait_s > 0 or number == 0
