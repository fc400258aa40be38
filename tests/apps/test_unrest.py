"""Flapping is damped (test 12): who comes and goes stays a member, and is not planned with."""

from hypothesis import given
from hypothesis import strategies as st

from apps.planning.unrest import HALF_LIFE_S, MOST, Restless, Unrest, at, departed
from mesh.ids import PeerId

DEVICE, OTHER = PeerId("a" * 64), PeerId("b" * 64)


def test_one_departure_is_an_accident() -> None:
    unrest = Unrest()
    unrest.departed(DEVICE, 10.0)
    assert unrest.left_out(10.1) == {}
    assert unrest.next_calm_s() is None


def test_ten_minutes_of_flapping_leave_one_moment_to_plan_with_it() -> None:
    """Test 12: down each 3 s for 10 min; from the second time on it is left out."""
    unrest, planned_with = Unrest(), 0
    for beat in range(200):
        unrest.departed(DEVICE, 3.0 * beat)
        planned_with += DEVICE not in unrest.left_out(3.0 * beat + 1.5)
    assert planned_with == 1
    assert "came and went" in unrest.left_out(600.0)[DEVICE]
    assert OTHER not in unrest.left_out(600.0)


def test_who_stays_long_enough_is_planned_with_again() -> None:
    unrest = Unrest()
    for beat in range(200):
        unrest.departed(DEVICE, 3.0 * beat)
    calm_s = unrest.next_calm_s()
    assert calm_s is not None
    assert 597.0 + HALF_LIFE_S < calm_s <= 597.0 + 3 * HALF_LIFE_S
    assert DEVICE in unrest.left_out(calm_s - 0.01)
    assert unrest.left_out(calm_s + 0.01) == {}


def test_two_departures_in_an_evening_are_no_unrest() -> None:
    unrest = Unrest()
    unrest.departed(DEVICE, 0.0)
    unrest.departed(DEVICE, 3600.0)
    assert unrest.left_out(3600.0) == {}


@given(st.lists(st.floats(0.01, 600.0), min_size=1, max_size=50))
def test_the_weight_is_bounded_and_calm_always_comes(pauses: list[float]) -> None:
    known, now_s = Restless(), 0.0
    for pause_s in pauses:
        now_s += pause_s
        known = departed(at(known, now_s), now_s)
    assert known.weight <= MOST
    assert not at(known, now_s + 3 * HALF_LIFE_S + 1e-6).is_left_out
