"""What devices really take corrects their curves; only what tells, and never to and fro."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.ids import PeerId
from planner.allowed import EVERYTHING
from planner.choose import choose
from planner.cost import predict
from planner.drift import (
    COMMON,
    MIN_TOKEN_TURNS,
    TELLING,
    Factors,
    Pace,
    Seen,
    corrected,
    drift_text,
    observed,
    told,
    without,
)
from planner.plan import Capacity, Plan
from planner.profile import Cluster
from planner.request import Request
from planner.sound import is_sound
from tests.planner.homes import EPOCH, MB, PLAN, at_mbit, bert, board, device, lan, model, peer

TOY = model()
ROOM = Capacity(1, 512)


def paces(
    plan: Plan, home: Cluster, times: dict[PeerId, float], *, turns: int = 48, busy: float = 1.0
) -> dict[PeerId, Pace]:
    """What the devices of a plan measure of tokens when each takes so many times as long."""
    found = predict(plan.stages, home, TOY, plan.capacity, plan.head)
    seen: dict[PeerId, Pace] = {}
    for one in found.forecasts:
        who = plan.stages[one.stage].shares[one.share].device
        took_s = times.get(who, 1.0) * one.decode.compute_s
        seen[who] = Pace(Seen(turns, 1, busy, took_s, 0.0), None)
    return seen


def plan_on(home: Cluster, keep: Plan | None = None) -> Plan:
    return choose(home, TOY, ROOM, EPOCH, PLAN, keep, allowed=EVERYTHING).plan


def test_a_device_that_takes_three_times_as_long_is_left() -> None:
    home = lan(device(0, layer_s=5e-3), device(1, layer_s=6e-3), bytes_per_s=1e5)
    plan = plan_on(home)
    assert plan.devices == (peer(0),)
    found = told(Factors(), observed(plan, home, TOY, paces(plan, home, {peer(0): 3.0})))
    assert found.devices == {peer(0): pytest.approx(3.0 / COMMON)}
    assert drift_text(home, Factors(), found) == "laptop takes 2.4 times as long as it measured"
    after = plan_on(corrected(home, found), plan)
    assert after.devices == (peer(1),)
    assert drift_text(home, found, found) == ""


@pytest.mark.parametrize(("turns", "busy"), [(MIN_TOKEN_TURNS - 1, 1.0), (48, 1.5)])
def test_few_turns_or_others_beside_say_nothing(turns: int, busy: float) -> None:
    home = lan(device(0, layer_s=5e-3))
    plan = plan_on(home)
    seen = paces(plan, home, {peer(0): 9.0}, turns=turns, busy=busy)
    assert observed(plan, home, TOY, seen) == Factors({}, {})


def test_what_nobody_would_notice_is_no_drift() -> None:
    home = lan(device(0, layer_s=1e-5, head_s=1e-5))
    plan = plan_on(home)
    found = observed(plan, home, TOY, paces(plan, home, {peer(0): 5.0}))
    assert told(Factors(), found) == Factors({}, {})


def test_all_off_alike_is_the_model_and_no_device() -> None:
    home = lan(*(device(n, 60 * MB, layer_s=5e-3) for n in range(2)))
    plan = plan_on(home)
    assert len(plan.devices) == 2
    found = observed(plan, home, TOY, paces(plan, home, dict.fromkeys(plan.devices, 1.2)))
    assert told(Factors(), found) == Factors({}, {})


def test_prompts_tell_where_there_is_no_answer_and_of_the_rows_that_there_were() -> None:
    of, home = bert(4), at_mbit(1000, board(0), board(1))
    plan = choose(home, of, ROOM, EPOCH, PLAN, request=Request(512, 0)).plan
    rows = 100
    expected_s = predict(plan.stages, home, of, ROOM, (), Request(rows, 0)).prefill_s
    seen = {plan.devices[0]: Pace(None, Seen(6, rows, 1.0, 2.5 * expected_s, 0.0))}
    found = observed(plan, home, of, seen)
    assert found.devices[plan.devices[0]] == pytest.approx(2.5 / COMMON, rel=0.02)


def test_a_link_that_carries_less_is_known_by_who_sends_over_it_alone() -> None:
    home = lan(*(device(n, 60 * MB) for n in range(2)), bytes_per_s=5e6)
    plan = plan_on(home)
    first, second = (stage.lead for stage in plan.stages)
    whole = tuple(replace(stage, tiles=1) for stage in plan.stages)
    sent_s = predict(whole, home, TOY, ROOM).forecasts[0].prefill.wire_s
    seen = {first: Pace(None, Seen(6, 512, 1.0, nan, 3 * sent_s))}
    found = told(Factors(), observed(plan, home, TOY, seen))
    assert found.links == {(first, second): pytest.approx(3.0, rel=0.05)}
    (link,) = (one for one in corrected(home, found).links if one.source == first)
    assert link.bytes_per_s == pytest.approx(5e6 / 3, rel=0.05)
    assert "the link from" in drift_text(home, Factors(), found)
    assert without(found, second) == Factors({}, {})


@given(st.floats(), st.floats(), st.integers(-5, 1000), st.integers(-5, 600), st.floats())
def test_whatever_a_device_claims_the_curves_stay_sound(
    compute_s: float, wire_s: float, turns: int, rows: int, busy: float
) -> None:
    home = lan(device(0, layer_s=5e-3))
    plan, seen = plan_on(home), Seen(turns, rows, busy, compute_s, wire_s)
    found = told(Factors(), observed(plan, home, TOY, {peer(0): Pace(seen, seen)}))
    assert all(is_sound(one) for one in corrected(home, found).devices)


def test_a_device_that_is_gone_says_nothing() -> None:
    home = lan(device(0, layer_s=5e-3), device(1))
    plan = plan_on(lan(device(0, layer_s=5e-3)))
    seen = paces(plan, home, {})
    assert observed(plan, replace(home, devices=home.devices[1:]), TOY, seen) == Factors()


@given(st.lists(st.floats(1.0, TELLING - 0.01), min_size=1, max_size=20))
def test_noise_changes_no_factor(noise: list[float]) -> None:
    known = Factors({peer(0): 2.0})
    for times in noise:
        assert told(known, Factors({peer(0): 2.0 * times})) == known
        assert told(known, Factors({peer(0): 2.0 / times})) == known


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.3, 6.0), min_size=2, max_size=3),
    st.integers(0, 2**32),
)
def test_steady_devices_are_planned_for_once_and_for_all(times: list[float], seed: int) -> None:
    """Whatever each really takes, after a few looks nothing is planned anew."""
    home = lan(*(device(n, layer_s=(5 + n) * 1e-3) for n in range(len(times))))
    real = {peer(n): one for n, one in enumerate(times)}
    plan, known, changes = plan_on(home), Factors(), 0
    for look in range(12):
        noise = {one: real[one] * (1 + ((seed >> look) % 7 - 3) / 100) for one in real}
        now = told(known, observed(plan, home, TOY, paces(plan, home, noise)))
        if now != known:
            known, before = now, plan
            plan = plan_on(corrected(home, known), plan)
            changes += plan.stages != before.stages
    assert changes <= 2 * len(times)
    settled = told(known, observed(plan, home, TOY, paces(plan, home, real)))
    again = plan_on(corrected(home, settled), plan)
    assert again.stages == plan.stages
    assert all(is_sound(one) for one in corrected(home, known).devices)
