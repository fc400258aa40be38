"""A device that is about to go, as the leader sees it: plans without it first, or a clear no."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from apps.planning import handover as handover_module
from apps.planning.handover import HandOver
from apps.planning.installer import Installer
from apps.planning.messages import (
    COMMIT_PLAN,
    LEAVE_PLANS,
    PREPARE_PLAN,
    LeaveReply,
    Outcome,
)
from apps.timeline import Timeline
from mesh.codec import to_plain
from mesh.errors import LinkClosed
from mesh.ids import PeerId
from mesh.node import Node
from runtime.pipeline import Pipeline
from runtime.weights import Checkpoint
from tests.apps.desk import tiny_checkpoints
from tests.apps.test_coordinator import WAIT_S, Home, size
from tests.runtime.room import peer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return tiny_checkpoints(tmp_path_factory.mktemp("models"), 2)


def shared_by_two(models: list[Checkpoint]) -> int:
    """Memory with which any two devices hold the model together, and one alone does not."""
    return size(models[0]) * 2 // 3


async def leave(home: Home, device: PeerId) -> LeaveReply:
    async with asyncio.timeout(WAIT_S):
        return await home.coordinator.leave(device)


@pytest.mark.parametrize("leads", [False, True], ids=["a follower", "the leader"])
async def test_it_may_go_when_a_plan_without_it_is_in_force(
    models: list[Checkpoint], leads: bool
) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 4) as home:
        before = await home.plan(models[0])
        home.talk(before)
        if (peer(0) in before.devices) < leads:
            pytest.skip("the leader has no share")
        leaver = peer(0) if leads else next(one for one in before.devices if one != peer(0))
        reply = await leave(home, leaver)
        assert reply.outcome is Outcome.OK
        after = await home.plan(models[0])
        assert leaver not in after.devices
        assert "about to leave" in home.said("planning")[-1]
        await home.until(lambda: before.plan_id not in home.desks[leaver].known())
        assert leaver not in (await home.plan(models[1])).devices, "nor any other"
        assert len(home.said("installed")) == 3


async def test_one_that_no_plan_needs_may_go_at_once(models: list[Checkpoint]) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 3) as home:
        plan = await home.plan(models[0])
        (spare,) = set(home.desks) - set(plan.devices)
        assert (await leave(home, spare)).outcome is Outcome.OK
        assert len(home.said("planning")) == 1


async def test_where_the_others_cannot_do_without_it_the_plan_stays_until_it_is_gone(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 2) as home:
        plan = await home.plan(models[0])
        session = home.talk(plan)
        reply = await leave(home, peer(1))
        assert reply.outcome is Outcome.IMPOSSIBLE
        assert "does not fit" in reply.reason
        assert (await home.plan(models[0])).plan_id == plan.plan_id
        assert home.conversations(plan) == 1
        assert len(home.said("planning")) == 2, "it is not tried again and again"
        home.hang_up(plan, session)


async def test_two_may_go_when_no_plan_needs_either(models: list[Checkpoint]) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 4) as home:
        plan = await home.plan(models[0])
        replies = await asyncio.gather(*(leave(home, device) for device in plan.devices))
        assert [reply.outcome for reply in replies] == [Outcome.OK, Outcome.OK]
        assert not set((await home.plan(models[0])).devices) & set(plan.devices)


@pytest.mark.parametrize("who", ["the leaver", "a taker"])
async def test_one_that_dies_meanwhile_is_planned_without(
    models: list[Checkpoint], who: str
) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 5) as home:
        before = await home.plan(models[0])
        leaver = next(one for one in before.devices if one != peer(0))
        gone: list[PeerId] = []

        def die(device: PeerId, topic: str) -> Exception | None:
            is_taker = device not in before.devices and device != peer(0)
            if topic != PREPARE_PLAN or gone or not is_taker:
                return None
            gone.append(leaver if who == "the leaver" else device)
            home.lose(list(home.desks).index(gone[0]))
            return LinkClosed("it is gone") if who == "a taker" else None

        home.fault = die
        reply = await leave(home, leaver)
        assert reply.outcome is Outcome.OK
        after = await home.plan(models[0])
        assert gone
        assert not {leaver, *gone} & set(after.devices)


async def test_a_commit_that_fails_is_done_again_before_it_may_go(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 3) as home:
        before = await home.plan(models[0])
        failures = iter([LinkClosed("a hiccup")] * 2)
        home.fault = lambda device, topic: next(failures, None) if topic == COMMIT_PLAN else None
        leaver = before.devices[-1]
        assert (await leave(home, leaver)).outcome is Outcome.OK
        assert leaver not in (await home.plan(models[0])).devices
        assert home.said("plan-failed")


async def test_a_device_that_no_longer_leads_sends_it_to_the_next(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, *[shared_by_two(models)] * 3) as home:
        before = await home.plan(models[0])
        held_up = asyncio.Event()

        def hold_up(device: PeerId, topic: str) -> Exception | None:
            if topic == PREPARE_PLAN:
                held_up.set()
                return LinkClosed("never")
            return None

        home.fault = hold_up
        leaving = asyncio.ensure_future(leave(home, before.devices[-1]))
        await held_up.wait()
        home.coordinator._leaving.stop()
        assert (await leaving).outcome is Outcome.RETRY
    assert (await home.coordinator.leave(peer(1))).outcome is Outcome.RETRY


# --- at the device that goes ----------------------------------------------------------------------


class Going:
    """The rest of a device that goes: its node, installer and pipeline."""

    def __init__(self, conversations: int, answer: Callable[[], LeaveReply]) -> None:
        self.conversations = conversations
        self.answer = answer
        self.asked = 0
        self.timeline = Timeline()
        self.has_vocabulary = False
        self.view = self.moving = self.former = self
        self.alive = (peer(0), peer(1))
        self.me, self.leader = peer(1), peer(0)

    def said(self) -> list[str]:
        return [event.kind for event in self.timeline.since(0)]

    def conversations_besides(self, owner: PeerId) -> int:
        return self.conversations

    async def wait_for(self, predicate: object, timeout_s: object) -> Going:
        return self

    async def request(self, device: PeerId, topic: str, body: object, timeout_s: float) -> object:
        assert topic == LEAVE_PLANS
        self.asked += 1
        return to_plain(self.answer())

    async def without_share(self) -> None:
        return None

    async def fetched(self) -> None:
        return None

    async def run(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await HandOver(
                cast(Node, self), cast(Installer, self), cast(Pipeline, self), self.timeline
            ).run()


def yes() -> LeaveReply:
    return LeaveReply(Outcome.OK, "")


async def test_it_hands_over_what_goes_through_it() -> None:
    going = Going(2, yes)
    await going.run()
    assert going.said() == ["handing-over", "handed-over"]


async def test_with_nothing_to_hand_over_it_asks_nobody() -> None:
    going = Going(0, yes)
    await going.run()
    assert (going.asked, going.said()) == (0, [])


async def test_with_rows_of_the_vocabulary_alone_it_hands_these_over() -> None:
    going = Going(0, yes)
    going.has_vocabulary = True
    await going.run()
    assert going.said() == ["handing-over", "handed-over"]


async def test_with_nobody_to_hand_over_to_it_asks_nobody() -> None:
    going = Going(1, yes)
    going.alive = (peer(1),)  # type: ignore[assignment]
    await going.run()
    assert (going.asked, going.said()) == (0, [])


async def test_a_no_is_told_and_it_goes() -> None:
    going = Going(1, lambda: LeaveReply(Outcome.IMPOSSIBLE, "it does not fit"))
    await going.run()
    assert going.said() == ["handing-over", "not-handed-over"]
    assert "it does not fit" in going.timeline.since(0)[-1].text


async def test_a_leader_that_dies_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover_module, "ASK_AGAIN_S", 0.0)
    errors = iter([LinkClosed("gone")])

    def answer() -> LeaveReply:
        for error in errors:
            raise error
        return LeaveReply(Outcome.RETRY, "not I") if going.asked == 2 else yes()

    going = Going(1, answer)
    await going.run()
    assert (going.asked, going.said()[-1]) == (3, "handed-over")


async def test_nobody_waits_for_longer_than_a_person_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover_module, "HAND_OVER_S", 0.02)
    going = Going(1, yes)
    never = asyncio.Event()
    monkeypatch.setattr(going, "fetched", never.wait)
    await going.run()
    assert going.said()[-1] == "not-handed-over"
