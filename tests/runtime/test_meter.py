"""When a turn counts as stuck: far longer than such turns take here, and waiting for nobody."""

from __future__ import annotations

from mesh.ids import PlanId
from runtime.meter import FIRST_TURN_S, STUCK_FACTOR, STUCK_LEAST_S
from runtime.turns import SHORT_ROWS
from tests.runtime.test_efforts import Clock, slices

PLAN = PlanId("b" * 32)
LONG = SHORT_ROWS + 1


def stuck_after(clock: Clock, rows: int, seconds: float) -> bool:
    """Whether a turn of so many rows that is so long under way counts as stuck."""
    with clock.meter.turn(PLAN, slices(rows), None):
        clock.now_s += seconds
        return clock.meter.is_stuck


def test_a_turn_that_takes_five_times_as_long_as_any_is_stuck() -> None:
    clock = Clock()
    clock.turn(1, 1.0)
    assert not stuck_after(clock, 1, STUCK_FACTOR * 1.0 - 0.1)
    clock = Clock()
    clock.turn(1, 1.0)
    assert stuck_after(clock, 1, STUCK_FACTOR * 1.0 + 0.1)
    assert not clock.meter.is_stuck, "the turn is over"


def test_a_busy_moment_and_a_first_turn_that_compiles_are_not_stuck() -> None:
    clock = Clock()
    clock.turn(1, 0.01)
    assert not stuck_after(clock, 1, STUCK_LEAST_S - 0.1)
    assert not stuck_after(Clock(), 1, STUCK_FACTOR * FIRST_TURN_S - 0.1)
    assert stuck_after(Clock(), 1, STUCK_FACTOR * FIRST_TURN_S + 0.1)


def test_a_long_prompt_may_take_as_long_as_it_has_rows() -> None:
    clock = Clock()
    clock.turn(LONG, 1.0)
    assert not stuck_after(clock, 10 * LONG, 10 * STUCK_FACTOR * 1.0 - 0.1)


def test_who_waits_for_another_device_is_not_stuck_itself() -> None:
    clock = Clock()
    clock.turn(1, 1.0)
    clock.chores.is_idle = True
    assert not stuck_after(clock, 1, 1000.0)


def test_a_plan_that_ended_in_mid_turn_leaves_nothing_stuck() -> None:
    clock = Clock()
    with clock.meter.turn(PLAN, slices(1), None):
        clock.meter.end(PLAN)
        clock.now_s += 1e6
        assert not clock.meter.is_stuck
