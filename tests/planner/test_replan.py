"""Replanning: a lost device, a new one, and the plan that stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.ids import Epoch, ModelId, PeerId
from planner.choose import Choice, choose
from planner.plan import Capacity, Plan
from planner.profile import Cluster, ModelProfile
from planner.replan import moved_bytes, why_replan
from tests.planner.homes import EPOCH, MB, PLAN, device, lan, model, peer, pipeline, plan

ONE = Capacity(1, 2048)
BARE = model(kv_bytes=0)  # 6 layers of 10 MB, a head of 20 MB
HERE = frozenset({peer(0), peer(1)})


def again(
    home: Cluster,
    keep: Plan,
    *,
    of: ModelProfile = BARE,
    wanted: Capacity = ONE,
    load_bytes_per_s: float = 200e6,
) -> Choice:
    return choose(home, of, wanted, EPOCH, PLAN, keep, load_bytes_per_s=load_bytes_per_s)


# --- when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "present", "considered", "why"),
    [
        (EPOCH, HERE, HERE, None),
        (EPOCH, HERE | {peer(2)}, HERE | {peer(2)}, None),
        (EPOCH, HERE, HERE | {peer(2)}, None),  # a spare device went: nothing runs on it
        (EPOCH, {peer(0)}, HERE, f"lost {peer(1).short}"),
        (EPOCH, HERE | {peer(2)}, HERE, f"{peer(2).short} joined"),
        (EPOCH, {peer(0), peer(2)}, HERE, f"lost {peer(1).short}"),
        (Epoch(2, peer(0)), HERE, HERE, "the plan of epoch 1/eeeeeeee is another leader's"),
        (Epoch(0, peer(0)), HERE, HERE, None),  # other models' plans came since
        (None, HERE, HERE, "is another leader's"),
    ],
)
def test_when_a_plan_must_be_made_anew(
    since: Epoch | None, present: set[PeerId], considered: set[PeerId], why: str | None
) -> None:
    running = plan(BARE, (device(0), 0, 3), (device(1), 3, 6))
    found = why_replan(running, since, frozenset(present), frozenset(considered))
    assert (found is None) if why is None else (found is not None and why in found)


# --- what must be loaded -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "moved_mb"),
    [
        (((0, 0, 3), (1, 3, 6)), 0),
        (((0, 0, 2), (1, 2, 6)), 10),
        (((0, 0, 4), (1, 4, 6)), 10),
        (((1, 0, 3), (0, 3, 6)), 80),  # changed places: everything, and the head
        (((0, 0, 6),), 50),  # three layers and the head
        (((1, 0, 6),), 30),  # three layers; the head is there
        (((2, 0, 6),), 80),
        (((0, 0, 3), (2, 3, 5), (1, 5, 6)), 20),
    ],
)
def test_only_what_a_device_did_not_hold_is_loaded(
    parts: tuple[tuple[int, int, int], ...], moved_mb: int
) -> None:
    old = plan(BARE, (device(0), 0, 3), (device(1), 3, 6))
    stages = pipeline(*((device(number), first, last) for number, first, last in parts))
    assert moved_bytes(old, stages, BARE) == moved_mb * MB


# --- a lost device -------------------------------------------------------------------------------


def test_after_a_loss_the_others_keep_what_they_hold() -> None:
    devices = [device(number, memory_bytes=70 * MB) for number in range(3)]
    old = plan(BARE, (devices[2], 0, 2), (devices[0], 2, 4), (devices[1], 4, 6))
    choice = again(lan(devices[0], devices[1]), old)
    assert choice.plan.stages == pipeline((devices[0], 0, 4), (devices[1], 4, 6))
    assert choice.plan.reason.startswith(
        f"2 devices, after losing {peer(2).short}: the quickest way to go on, "
        "20 MB to load in 100 ms;"
    )


def test_after_a_loss_a_slightly_faster_device_is_not_worth_the_wait() -> None:
    """The survivor lacks half the model; the newcomer is 12 % faster but would load all of it."""
    old = plan(BARE, (device(2), 0, 3), (device(0), 3, 6))
    home = lan(device(0), device(1, layer_s=0.88e-3))
    assert again(home, old, load_bytes_per_s=10e6).plan.devices == (peer(0),)
    assert again(home, old, load_bytes_per_s=1e12).plan.devices == (peer(1),)


def test_losing_the_head_costs_its_loading() -> None:
    old = plan(BARE, (device(0), 0, 3), (device(1), 3, 6))
    first = again(lan(device(0)), old).candidates[0]
    assert first.moved_bytes == 50 * MB


def test_a_loss_may_cost_capacity_and_says_so() -> None:
    of = model(kv_bytes=1000)
    devices = [device(number, memory_bytes=80 * MB) for number in range(2)]
    wanted = Capacity(4, 8192)
    before = choose(lan(*devices, device(2, 200 * MB)), of, wanted, EPOCH, PLAN).plan
    assert before.capacity == wanted
    after = again(lan(*devices), before, of=of, wanted=wanted).plan
    assert after.capacity == Capacity(1, 8192)
    assert "only 1 of the 4 conversations asked for" in after.reason


def test_memory_taken_back_forces_a_move() -> None:
    old = plan(BARE, (device(0), 0, 6))
    choice = again(lan(device(0, memory_bytes=50 * MB), device(1, 60 * MB)), old)
    assert len(choice.plan.stages) == 2
    assert "since the plan before fits no more" in choice.plan.reason


def test_a_plan_of_another_model_keeps_nothing() -> None:
    old = replace(plan(BARE, (device(1), 0, 6)), model=ModelId("f" * 64))
    choice = again(lan(device(0), device(1)), old)
    assert choice.plan.devices == (peer(0),)
    assert choice.candidates[0].moved_bytes == 0


# --- a new device --------------------------------------------------------------------------------


def test_a_fast_newcomer_is_used_when_it_repays_its_loading() -> None:
    slow = [device(number, 60 * MB, layer_s=5e-3) for number in (0, 2)]
    old = plan(BARE, (slow[0], 0, 4), (slow[1], 4, 6))
    desktop = device(1, layer_s=1e-3)
    choice = again(lan(*slow, desktop), old, load_bytes_per_s=5e6)
    assert choice.plan.devices == (peer(1),)
    assert choice.plan.reason.startswith("One device, desktop joins: 37.2 ms -> 11 ms per token ")
    assert "repays 16 s of loading after 611 tokens" in choice.plan.reason


def test_a_newcomer_that_does_not_repay_its_loading_is_not_used() -> None:
    old = plan(BARE, (device(0, layer_s=2e-3), 0, 6))
    home = lan(device(0, layer_s=2e-3), device(1, layer_s=1e-3))
    assert again(home, old).plan.devices == (peer(1),)
    choice = again(home, old, load_bytes_per_s=1e6)
    assert choice.plan.stages == old.stages
    assert choice.plan.reason.startswith("The running plan stays: desktop not used, because ")
    assert "does not repay" in choice.plan.reason
    assert "to load in" in choice.candidates[1].reason


@pytest.mark.parametrize(("layer_s", "moves"), [(0.85e-3, False), (0.5e-3, True)])
def test_a_small_gain_moves_nothing(layer_s: float, moves: bool) -> None:
    old = plan(BARE, (device(0), 0, 6))
    choice = again(lan(device(0), device(1, layer_s=layer_s)), old, load_bytes_per_s=1e12)
    assert (choice.plan.stages != old.stages) is moves
    assert ("less than the 10% that a switch must gain" in choice.plan.reason) is not moves


def test_a_slower_newcomer_is_not_used() -> None:
    old = plan(BARE, (device(0), 0, 6))
    choice = again(lan(device(0), device(1, layer_s=1.0)), old)
    assert choice.plan.stages == old.stages
    assert "desktop not used, because it would not be faster" in choice.plan.reason


def test_more_capacity_is_always_worth_it() -> None:
    of = model(kv_bytes=1000)
    old = plan(of, (device(0, memory_bytes=100 * MB), 0, 6))
    home = lan(device(0, memory_bytes=100 * MB), device(1, 300 * MB, layer_s=1.0))
    wanted = Capacity(4, 2048)
    choice = again(home, old, of=of, wanted=wanted, load_bytes_per_s=1e6)
    assert choice.plan.capacity == wanted
    assert "desktop joins: holds all 4 conversations, the running plan only 1 of" in (
        choice.plan.reason
    )


def test_the_same_home_keeps_its_plan() -> None:
    home = lan(device(0), device(1), device(2))
    first = choose(home, BARE, ONE, EPOCH, PLAN).plan
    second = again(home, first)
    assert (second.plan.stages, second.plan.capacity) == (first.stages, first.capacity)
    assert second.plan.reason.startswith("The running plan stays: ")
    assert second.candidates[0].stages == first.stages
    assert len({frozenset(row.devices) for row in second.candidates}) == 7


def test_a_running_plan_serves_a_larger_wish_where_it_is() -> None:
    home = lan(device(0), device(1))
    first = choose(home, BARE, ONE, EPOCH, PLAN).plan
    assert again(home, first, wanted=Capacity(8, 8192)).plan.capacity == Capacity(8, 8192)


def test_a_device_that_is_no_longer_needed_is_said_so() -> None:
    """It had to help, until the other was given more memory."""
    devices = [device(0), device(1, layer_s=5e-3)]
    old = plan(BARE, (devices[0], 0, 2), (devices[1], 2, 6))
    choice = again(lan(*devices), old)
    assert choice.plan.devices == (peer(0),)
    assert "desktop no longer needed" in choice.plan.reason


def test_a_plan_without_rivals_stays_without_comparison() -> None:
    of = model(kv_bytes=1000)
    home = lan(device(0, 80 * MB), device(1, 80 * MB))
    wanted = Capacity(4, 2048)
    first = choose(home, of, wanted, EPOCH, PLAN).plan
    assert len(first.stages) == 2
    reason = again(home, first, of=of, wanted=wanted).plan.reason
    assert reason.startswith("The running plan stays: nothing better is possible; predicted ")
