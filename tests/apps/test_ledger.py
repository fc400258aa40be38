"""What the leader holds to be in force: terms, departures, and what comes next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apps.planning.agenda import Task, next_task
from apps.planning.ledger import OPEN_GRACE_S, Entry, Ledger, Use, uses
from apps.planning.messages import Known, ModelRef, Report, Wish
from mesh.ids import Epoch, ModelId, PeerId, PlanId
from mesh.membership import Member, View
from mesh.messages import Health
from planner.plan import Capacity, Plan
from planner.room import MAX_MODELS
from runtime.compute.precision import Precision
from tests.planner.homes import device, model, peer, plan

ROOM = Capacity(2, 2048)
ME = peer(0)


def epoch(counter: int, leader: PeerId = ME) -> Epoch:
    return Epoch(counter, leader)


def wish(number: int, capacity: Capacity = ROOM, precision: Precision = Precision.AUTO) -> Wish:
    of = replace(model(), model=ModelId(f"{number:064x}"), name=f"model{number}")
    return Wish(ModelRef(of.model, of.name, "", precision), of, capacity)


def planned(number: int, counter: int, devices: tuple[int, ...] = (0, 1)) -> Plan:
    of = wish(number).profile
    share = 6 // len(devices)
    parts = [(device(one), n * share, (n + 1) * share) for n, one in enumerate(devices)]
    return replace(plan(of, *parts), epoch=epoch(counter), plan_id=PlanId.new(), capacity=ROOM)


def entry(number: int, counter: int, used_s: float = 0.0, *devices: int) -> Entry:
    made = planned(number, counter, devices or (0, 1))
    return Entry(made, wish(number), frozenset({peer(0), peer(1), peer(2)}), 0, used_s)


def view(counter: int, *here: int) -> View:
    members = tuple(Member(peer(n), f"device{n}", 0, Health.ALIVE, None) for n in here or (0, 1, 2))
    return View(ME, members, epoch(counter), ME, 1)


def ledger_with(*entries: Entry) -> Ledger:
    """Of a leader that took the epochs of these plans one after the other."""
    ledger, before = Ledger(), None
    for one in entries:
        ledger.took(one.plan.epoch, before)
        before = one.plan.epoch
        ledger.put(one)
    return ledger


def upcoming(
    ledger: Ledger,
    now: View,
    *waiting: Wish,
    failures: dict[ModelId, int] | None = None,
    passed: tuple[ModelId, ...] = (),
) -> Task | None:
    return next_task(ledger, waiting, now, 100.0, failures or {}, passed)


def number_of(task: Task | None) -> int | None:
    return None if task is None else int(task.model, 16)


# --- terms ----------------------------------------------------------------------------------------


def test_another_models_plan_leaves_a_plan_valid() -> None:
    ledger = ledger_with(entry(1, 5), entry(2, 6))
    assert ledger.serving(wish(1), epoch(6)) is not None
    assert ledger.serving(wish(2), epoch(6)) is not None
    assert upcoming(ledger, view(6)) is None


def test_an_epoch_that_was_not_taken_for_a_plan_ends_the_term() -> None:
    """The mesh met another leader's side: who knows what the devices did there."""
    ledger = ledger_with(entry(1, 5), entry(2, 6))
    assert ledger.serving(wish(1), epoch(8)) is None
    ledger.took(epoch(9), epoch(8))
    fresh = entry(2, 9)
    ledger.put(fresh)
    assert ledger.serving(wish(2), epoch(9)) is fresh
    assert ledger.serving(wish(1), epoch(9)) is None
    task = upcoming(ledger, view(9))
    assert number_of(task) == 1
    assert task is not None
    assert "another leader's" in task.reason


def test_a_new_leader_takes_over_every_model_and_holds_none_to_be_whole() -> None:
    old, new = planned(1, 4), planned(1, 7)
    other = planned(2, 6)
    ledger = Ledger()
    ledger.recall(
        [
            Report((Known(old, wish(1), 50.0, 0), Known(other, wish(2), 9.0, 1))),
            Report((Known(new, wish(1), 30.0, 0),)),
        ],
        100.0,
    )
    assert {one.plan.plan_id for one in ledger.entries} == {new.plan_id, other.plan_id}
    assert sorted(round(one.idle_s(100.0)) for one in ledger.entries) == [9, 30]
    assert ledger.serving(wish(1), epoch(7)) is None
    assert number_of(upcoming(ledger, view(8))) == 2, "the one used last comes first"


def test_of_too_many_models_the_last_used_are_taken_over() -> None:
    known = tuple(Known(planned(n, n), wish(n), float(n), 0) for n in range(1, MAX_MODELS + 4))
    ledger = Ledger()
    ledger.recall([Report(known)], 100.0)
    assert sorted(int(one.plan.model, 16) for one in ledger.entries) == list(
        range(1, MAX_MODELS + 1)
    )


# --- departures -----------------------------------------------------------------------------------


def test_a_device_that_went_breaks_its_plans_and_no_others() -> None:
    ledger = ledger_with(entry(1, 5, 0.0, 0, 1), entry(2, 6, 0.0, 0, 2))
    assert ledger.left(peer(2))
    assert ledger.serving(wish(1), epoch(6)) is not None
    assert ledger.serving(wish(2), epoch(6)) is None
    task = upcoming(ledger, view(6, 0, 1))
    assert number_of(task) == 2
    assert task is not None
    assert task.is_urgent
    assert task.reason == f"lost {peer(2).short}"


def test_a_device_that_is_back_in_a_moment_has_lost_what_it_held() -> None:
    ledger = ledger_with(entry(1, 5))
    ledger.left(peer(1))
    task = upcoming(ledger, view(5))
    assert task is not None
    assert task.reason == "lost device1"


def test_who_went_while_a_plan_was_made_is_looked_at_next() -> None:
    ledger = Ledger()
    as_of = ledger.departures
    ledger.left(peer(1))  # while the devices prepared
    ledger.took(epoch(5), None)
    ledger.put(replace(entry(1, 5), as_of=as_of))
    assert ledger.serving(wish(1), epoch(5)) is None


def test_a_spare_device_that_went_and_came_back_is_considered_again() -> None:
    ledger = ledger_with(entry(1, 5, 0.0, 0, 1))
    assert not ledger.left(peer(2))
    assert upcoming(ledger, view(5, 0, 1)) is None
    task = upcoming(ledger, view(5))
    assert task is not None
    assert task.reason == "device2 joined"
    assert not task.may_ask, "nobody makes room for what is only better"


def test_what_fits_no_more_waits_for_a_device_or_for_somebody_who_asks() -> None:
    one = entry(1, 5)
    ledger = ledger_with(one)
    ledger.left(peer(1))
    ledger.lapse(one, frozenset({peer(0)}))
    assert upcoming(ledger, view(5, 0)) is None
    assert not ledger.in_force(100.0)
    assert not ledger.tenants(ModelId("0" * 64), epoch(5), 100.0, {})
    task = upcoming(ledger, view(5, 0, 1))
    assert task is not None
    assert task.may_ask
    assert upcoming(ledger, view(5, 0), wish(1)) is not None


# --- what comes next ------------------------------------------------------------------------------


def test_broken_plans_come_first_and_of_them_those_somebody_waits_for() -> None:
    ledger = ledger_with(entry(1, 5, 90.0, 0, 1), entry(2, 6, 10.0, 0, 1))
    ledger.left(peer(1))
    now = view(6, 0, 2)
    assert number_of(upcoming(ledger, now)) == 1
    assert number_of(upcoming(ledger, now, wish(3))) == 1
    assert number_of(upcoming(ledger, now, wish(3), wish(2))) == 2
    assert number_of(upcoming(ledger, now, wish(3), passed=(wish(1).model.model,))) == 2


def test_what_fails_lets_others_go_first() -> None:
    ledger = ledger_with(entry(1, 5, 90.0), entry(2, 6, 10.0))
    ledger.left(peer(1))
    failures = {wish(1).model.model: 1}
    assert number_of(upcoming(ledger, view(6, 0), failures=failures)) == 2


def test_what_is_wanted_comes_before_what_could_be_better() -> None:
    ledger = ledger_with(replace(entry(1, 5), considered=frozenset({peer(0), peer(1)})))
    assert number_of(upcoming(ledger, view(5), wish(2), wish(3))) == 2
    assert number_of(upcoming(ledger, view(5))) == 1


def test_what_was_to_leave_comes_after_what_it_makes_room_for() -> None:
    leaving = entry(1, 5)
    ledger = ledger_with(leaving)
    ledger.doubt([leaving.plan.plan_id])
    ledger.dismiss([leaving.plan.plan_id])
    failed = {wish(2).model.model: 3}
    assert number_of(upcoming(ledger, view(5), wish(2), failures=failed)) == 2
    assert number_of(upcoming(ledger, view(5))) == 1


def test_a_device_that_lacks_its_share_means_another_plan() -> None:
    one = entry(1, 5)
    ledger = ledger_with(one)
    ledger.doubt([one.plan.plan_id])
    task = upcoming(ledger, view(5))
    assert task is not None
    assert "hold it ready" in task.reason


def test_a_broken_plan_is_made_with_the_room_of_those_who_wait() -> None:
    ledger = ledger_with(entry(1, 5))
    ledger.left(peer(1))
    task = upcoming(ledger, view(5, 0), wish(1, Capacity(8, 1024)))
    assert task is not None
    assert task.wish.capacity == Capacity(8, 2048)


def test_another_precision_is_another_wish_for_the_same_model() -> None:
    ledger = ledger_with(entry(1, 5))
    exact = wish(1, precision=Precision.FP32)
    assert ledger.serving(wish(1, precision=Precision.INT8), epoch(5)) is not None, "is auto"
    assert ledger.serving(exact, epoch(5)) is None
    task = upcoming(ledger, view(5), exact)
    assert task is not None
    assert task.wish == exact
    assert task.may_ask


# --- use ------------------------------------------------------------------------------------------


def test_of_several_reports_the_busiest_counts() -> None:
    one = planned(1, 5)
    told = uses(
        [
            Report((Known(one, wish(1), 40.0, 0),)),
            Report((Known(one, wish(1), 3.0, 2),)),
            Report((Known(planned(1, 4), wish(1), 0.0, 9),)),  # an older plan's
        ]
    )
    assert told[one.plan_id] == Use(2, 3.0)


@pytest.mark.parametrize(
    ("handed_ago_s", "idle_s", "conversations"),
    [
        (1.0, 60.0, 1),  # nothing was heard of it since: it is about to begin
        (1.0, 0.5, 0),  # it has been, and is over
        (OPEN_GRACE_S + 1, 60.0, 0),  # it never came
    ],
)
def test_a_plan_just_handed_out_is_in_use(
    handed_ago_s: float, idle_s: float, conversations: int
) -> None:
    one = entry(1, 5)
    ledger = ledger_with(replace(one, handed_s=100.0 - handed_ago_s))
    told = {one.plan.plan_id: Use(0, idle_s)}
    ledger.hear(told, 100.0)
    (tenant,) = ledger.tenants(wish(2).model.model, epoch(5), 100.0, told)
    assert tenant.conversations == conversations
    assert tenant.idle_s == min(idle_s, handed_ago_s)
