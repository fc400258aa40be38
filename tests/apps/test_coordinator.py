"""The leader's loop over several models: real installers and weights, no network in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, cast

import pytest

from apps.models.messages import BRING_SHARE, BringReply, BringRequest
from apps.planning import coordinator as coordinator_module
from apps.planning.coordinator import Coordinator
from apps.planning.messages import (
    COMMIT_PLAN,
    PREPARE_PLAN,
    PROFILE_DEVICE,
    REPORT_PLAN,
    Blame,
    Commit,
    CommitReply,
    EffortsReport,
    ModelRef,
    Outcome,
    Prepare,
    PrepareReply,
    ProfileReply,
    WantReply,
    Wish,
)
from apps.timeline import Timeline
from mesh.codec import from_plain, to_plain
from mesh.errors import Busy, LinkClosed, NoRoom, StaleEpoch
from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.membership import Member, View
from mesh.messages import Health
from mesh.node import Node
from planner.memory import held_bytes
from planner.plan import Capacity, Plan, Span
from planner.profile import Curve, DeviceProfile, LinkProfile
from runtime.compute.precision import Precision
from runtime.efforts import Measured, PlanEfforts
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.weights import Checkpoint
from tests.apps.desk import Desk, tiny_checkpoints
from tests.runtime.room import peer

Fault = Callable[[PeerId, str], Exception | None]
WAIT_S = 10.0
ROOM = Capacity(2, 256)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return tiny_checkpoints(tmp_path_factory.mktemp("models"), 4)


def wish(checkpoint: Checkpoint, room: Capacity = ROOM) -> Wish:
    reference = ModelRef(checkpoint.model_id, checkpoint.path.stem, "", checkpoint.precision)
    profile = replace(checkpoint.profile(), name=checkpoint.path.stem)
    return Wish(reference, profile, room)


def size(checkpoint: Checkpoint, room: Capacity = ROOM) -> int:
    profile = checkpoint.profile()
    return held_bytes(profile, Span(0, len(profile.layers)), room)


class Home:
    """Devices, and the node of the one that leads."""

    def __init__(self, models: list[Checkpoint], memory: list[int]) -> None:
        self.desks = {
            peer(n): Desk(models, n, memory_bytes) for n, memory_bytes in enumerate(memory)
        }
        self.memory = dict(zip(self.desks, memory, strict=True))
        self.timeline = Timeline()
        self.fault: Fault = lambda device, topic: None
        self.times = dict.fromkeys(self.desks, 1.0)  # as long as it measured each takes
        self.turns = self.asked = 0
        self.layer_s, self.bytes_per_s = 1e-3, 1e8
        self.bring: Callable[[BringRequest], BringReply] = lambda request: BROUGHT
        self.brought = 0  # how often a device was to bring its share
        self.slower = dict.fromkeys(self.desks, 1.0)  # what a layer takes on each, times `layer_s`
        self.view = View(peer(0), (), Epoch(1, peer(0)), peer(0), 1)
        self.here = set(self.desks)
        self._show()
        self.coordinator = Coordinator(cast(Node, self), self.timeline)

    @classmethod
    @asynccontextmanager
    async def of(cls, models: list[Checkpoint], *memory: int) -> AsyncIterator[Home]:
        home = cls(models, list(memory))
        running = asyncio.ensure_future(home.coordinator.run())
        await asyncio.sleep(0)
        try:
            yield home
        finally:
            running.cancel()
            await asyncio.wait([running])
            for desk in home.desks.values():
                desk.worker.close()

    # --- what a person does -----------------------------------------------------------------------

    async def want(self, checkpoint: Checkpoint, room: Capacity = ROOM) -> WantReply:
        async with asyncio.timeout(WAIT_S):
            return await self.coordinator.want(wish(checkpoint, room))

    async def plan(self, checkpoint: Checkpoint, room: Capacity = ROOM) -> Plan:
        """The plan in force, asked for by somebody who talks to it at once."""
        reply = await self.want(checkpoint, room)
        assert reply.outcome is Outcome.OK, reply.reason
        assert reply.plan is not None
        return reply.plan

    def talk(self, plan: Plan) -> SessionId:
        """A conversation begins on all stages, and stays."""
        session = SessionId.new()
        request = OpenSession(plan.epoch, plan.plan_id, session, peer(0), Sampling(), 16)
        for device in plan.devices:
            self.desks[device].pipeline.open(request)
        return session

    def hang_up(self, plan: Plan, session: SessionId) -> None:
        for device in plan.devices:
            self.desks[device].pipeline.close(session, peer(0))

    async def use(self, checkpoint: Checkpoint, room: Capacity = ROOM) -> Plan:
        """A short conversation."""
        plan = await self.plan(checkpoint, room)
        self.hang_up(plan, self.talk(plan))
        return plan

    def conversations(self, plan: Plan) -> int:
        return max(desk.pipeline.conversations_of(plan.plan_id) for desk in self.desks.values())

    def lose(self, number: int) -> None:
        self.here.discard(peer(number))
        self._show()
        self.coordinator.on_gone(peer(number))
        self.coordinator.on_view_changed()

    def come_back(self, number: int) -> None:
        self.here.add(peer(number))
        self._show()
        self.coordinator.on_view_changed()

    def models_on(self, number: int) -> set[str]:
        return {
            held.checkpoint.path.stem for held in self.desks[peer(number)].holdings.models.values()
        }

    def said(self, kind: str) -> list[str]:
        return [event.text for event in self.timeline.since(0) if event.kind == kind]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                await asyncio.sleep(0.005)

    def _show(self) -> None:
        members = tuple(
            Member(one, f"device{n}", 0, Health.ALIVE if one in self.here else Health.DEAD, None)
            for n, one in enumerate(self.desks)
        )
        self.view = replace(self.view, members=members)

    # --- mesh.node.Node ---------------------------------------------------------------------------

    async def wait_for(self, predicate: Callable[[View], bool], timeout_s: float | None) -> View:
        while not predicate(self.view):
            await asyncio.sleep(0.005)
        return self.view

    def advance_epoch(self, reason: str) -> Epoch:
        assert self.view.epoch is not None
        epoch = Epoch(self.view.epoch.counter + 1, peer(0))
        self.view = replace(self.view, epoch=epoch)
        return epoch

    async def request(self, device: PeerId, topic: str, body: Any, timeout_s: float) -> Any:
        await asyncio.sleep(0)
        if device not in self.here:
            raise LinkClosed(f"{device.short} is gone")
        if error := self.fault(device, topic):
            raise error
        desk = self.desks[device]
        match topic:
            case "plan.report":
                return to_plain(desk.installer.report())
            case "plan.prepare":
                return to_plain(await self._prepare(desk, from_plain(Prepare, body)))
            case "plan.commit":
                commit: Commit = from_plain(Commit, body)
                lacks = await desk.installer.commit(commit, self.view.epoch)
                return to_plain(CommitReply(lacks))
            case "profile.device":
                return to_plain(self._profile(device))
            case "plan.efforts":
                self.asked += 1
                return to_plain(EffortsReport(self._measured(device)))
        assert topic == BRING_SHARE, topic
        self.brought += 1
        return to_plain(self.bring(from_plain(BringRequest, body)))

    async def _prepare(self, desk: Desk, request: Prepare) -> PrepareReply:
        try:
            await desk.installer.prepare(request, self.view.epoch)
        except StaleEpoch as error:
            return PrepareReply(Outcome.RETRY, str(error))
        except Busy as error:
            return PrepareReply(Outcome.BUSY, str(error))
        return PrepareReply(Outcome.OK, "")

    def _measured(self, device: PeerId) -> tuple[PlanEfforts, ...]:
        """What it measured of tokens under the plans in which it computes."""
        found = []
        for entry in self.coordinator._ledger.entries:
            plan = entry.plan
            took_s = sum(
                one.decode.compute_s
                for one in plan.predicted.forecasts
                if plan.stages[one.stage].shares[one.share].device == device
            )
            if took_s and self.turns:
                took_s = self.times[device] * (took_s / self.believed(device))
                tokens = Measured(self.turns, 1.0, 1.0, took_s, 0.0, 0.0, 0.0, 0.0)
                found.append(PlanEfforts(plan.plan_id, None, tokens))
        return tuple(found)

    def believed(self, device: PeerId) -> float:
        """How many times as long as it measured the leader thinks that a device takes."""
        return self.coordinator._drifting._factors.devices.get(device, 1.0)

    def _profile(self, device: PeerId) -> ProfileReply:
        layer_s = self.layer_s * self.slower[device]
        curve = Curve(((1, layer_s), (512, 40 * layer_s)))
        name = f"device{list(self.desks).index(device)}"
        profile = DeviceProfile(device, name, self.memory[device], curve, 1e-3, 0)
        links = tuple(
            LinkProfile(source, target, 1e-3, self.bytes_per_s)
            for source, target in permutations(self.desks, 2)
            if source == device
        )
        return ProfileReply(profile, "", links, unmeasured=False)


BROUGHT = BringReply(Outcome.OK, "", 0, 0)
TOPICS = {REPORT_PLAN, PREPARE_PLAN, COMMIT_PLAN, PROFILE_DEVICE}


# --- beside each other ----------------------------------------------------------------------------


async def test_two_models_are_in_force_at_once(models: list[Checkpoint]) -> None:
    async with Home.of(models, 2 * size(models[0])) as home:
        first = await home.plan(models[0])
        home.talk(first)
        second = await home.plan(models[1])
        home.talk(second)
        assert (home.conversations(first), home.conversations(second)) == (1, 1)
        assert home.models_on(0) == {"tiny0", "tiny1"}
        assert (await home.plan(models[0])).plan_id == first.plan_id, "it is still in force"


async def test_a_second_model_is_shared_where_one_device_has_too_little_left(
    models: list[Checkpoint],
) -> None:
    room = size(models[0])
    async with Home.of(models, room * 3 // 2, room * 3 // 2) as home:
        first, second = await home.use(models[0]), await home.use(models[1])
        third = await home.plan(models[2])
        assert len(first.devices) == len(second.devices) == 1
        assert set(third.devices) == {peer(0), peer(1)}
        for desk in home.desks.values():
            assert desk.holdings.size_bytes <= desk.holdings.memory_bytes


async def test_the_least_recently_used_one_makes_room(models: list[Checkpoint]) -> None:
    async with Home.of(models, 2 * size(models[0])) as home:
        first, second = await home.use(models[0]), await home.use(models[1])
        await home.use(models[0])
        await home.plan(models[2])
        assert home.models_on(0) == {"tiny0", "tiny2"}
        assert len(home.said("evicted")) == 1
        assert "leaves to make room for" in home.said("evicted")[0]
        assert "tiny1" in home.said("evicted")[0]
        assert (await home.plan(models[0])).plan_id == first.plan_id
        assert second.plan_id not in home.desks[peer(0)].known()


async def test_a_conversation_keeps_its_model_whoever_came_later(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, 2 * size(models[0])) as home:
        first = await home.plan(models[0])
        home.talk(first)
        await home.use(models[1])
        await home.plan(models[2])
        assert home.models_on(0) == {"tiny0", "tiny2"}
        assert home.conversations(first) == 1


async def test_where_all_are_in_use_the_answer_says_by_whom(models: list[Checkpoint]) -> None:
    async with Home.of(models, 2 * size(models[0], Capacity(1, 256))) as home:
        plans = [await home.plan(model) for model in models[:2]]
        sessions = [home.talk(plan) for plan in plans]
        reply = await home.want(models[2])
        assert reply.outcome is Outcome.BUSY
        assert "tiny0 for 1 conversation and tiny1 for 1 conversation" in reply.reason
        assert [home.conversations(plan) for plan in plans] == [1, 1]
        home.hang_up(plans[1], sessions[1])
        await home.plan(models[2])
        assert home.models_on(0) == {"tiny0", "tiny2"}


async def test_what_fits_nowhere_is_refused_with_numbers_and_costs_nobody_a_thing(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, 2 * size(models[0])) as home:
        first, second = await home.use(models[0]), await home.plan(models[1])
        home.talk(second)
        huge = wish(models[2])
        layers = tuple(replace(one, weight_bytes=10**9) for one in huge.profile.layers)
        huge = replace(huge, profile=replace(huge.profile, layers=layers))
        reply = await home.coordinator.want(huge)
        assert reply.outcome is Outcome.IMPOSSIBLE
        assert "tiny2 does not fit" in reply.reason
        assert "short by" in reply.reason
        assert not home.said("evicted")
        assert home.conversations(second) == 1
        assert (await home.plan(models[0])).plan_id == first.plan_id


async def test_empty_places_are_given_up_before_a_model_leaves(models: list[Checkpoint]) -> None:
    """The chat model took room for eight conversations and has one; a second model fits."""
    many = Capacity(8, 256)
    memory = size(models[0], many)
    async with Home.of(models, memory) as home:
        first = (await home.want(models[0], many)).plan
        assert first is not None
        assert first.capacity == many
        home.talk(first)
        second = await home.plan(models[1])
        assert home.conversations(first) == 1
        assert not home.said("evicted")
        smaller = (await home.want(models[0], many)).plan
        assert smaller is not None
        assert smaller.plan_id == first.plan_id
        assert smaller.capacity.sessions < 8
        held = size(models[0], smaller.capacity) + size(models[1], second.capacity)
        assert held <= memory
        for _ in range(1, smaller.capacity.sessions):
            home.talk(smaller)
        with pytest.raises(Busy):
            home.talk(smaller)


async def test_another_precision_waits_for_the_conversations_of_the_first(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, 10 * size(models[0])) as home:
        first = await home.plan(models[0])
        session = home.talk(first)
        exact = models[0].at(Precision.FP32)
        reply = await home.want(exact)
        assert reply.outcome is Outcome.BUSY
        assert "as int8 for 1 conversation" in reply.reason
        home.hang_up(first, session)
        await home.plan(exact)
        assert len(home.desks[peer(0)].known()) == 1
        held = home.desks[peer(0)].holdings.models[models[0].model_id]
        assert held.checkpoint.precision is Precision.FP32


# --- devices come and go --------------------------------------------------------------------------


async def test_a_lost_device_breaks_only_the_models_that_were_on_it(
    models: list[Checkpoint],
) -> None:
    room = size(models[0])
    async with Home.of(models, room, room, room) as home:
        first, second = await home.plan(models[0]), await home.plan(models[1])
        assert first.devices != second.devices
        home.talk(first)
        lost = list(home.desks).index(second.devices[0])
        home.lose(lost)
        again = await home.plan(models[1])
        assert second.devices[0] not in again.devices
        assert home.conversations(first) == 1, "the other did not notice"
        assert (await home.plan(models[0])).plan_id == first.plan_id


async def test_when_no_copy_of_some_layers_is_left_there_is_one_clear_error(
    models: list[Checkpoint],
) -> None:
    """Reliability test 15: no endless retry, and the text says what is missing and who had it."""
    room = size(models[0])
    async with Home.of(models, room, room) as home:
        first = await home.plan(models[0])
        (gone,) = first.devices
        name = f"device{list(home.desks).index(gone)}"
        text = "no device here has layers 2..3 of tiny0"
        home.bring = lambda request: BringReply(Outcome.RETRY, text, 0, 0, is_nowhere=True)
        asked = home.brought
        home.lose(list(home.desks).index(gone))
        reply = await home.want(models[0])
        assert reply.outcome is Outcome.IMPOSSIBLE
        assert reply.reason.startswith(f"{text}: {name} had them. Bring back a device")
        assert home.brought == asked + 1, "asking again would not help"
        home.bring = lambda request: BROUGHT
        home.come_back(list(home.desks).index(gone))
        assert (await home.want(models[0])).outcome is Outcome.OK


async def test_a_device_that_joins_is_used_while_a_conversation_runs(
    models: list[Checkpoint],
) -> None:
    """The better plan repays its move, and comes without anybody asking for it."""
    room = size(models[0])
    async with Home.of(models, room, room) as home:
        home.here.discard(peer(1))
        home._show()
        home.slower[peer(1)] = 1e-3
        first = await home.plan(models[0])
        home.talk(first)
        assert first.devices == (peer(0),)
        home.come_back(1)
        await home.until(lambda: len(home.said("installed")) == 2)
        second = await home.plan(models[0])
        assert second.devices == (peer(1),)
        assert second.epoch > first.epoch
        assert "device1 joined" in " ".join(home.said("planning"))


async def test_a_device_that_joins_and_is_no_gain_disturbs_nobody(
    models: list[Checkpoint],
) -> None:
    room = size(models[0])
    async with Home.of(models, room, room) as home:
        home.here.discard(peer(1))
        home._show()
        home.slower[peer(1)] = 1e3
        first = await home.plan(models[0])
        home.talk(first)
        home.come_back(1)
        await home.until(lambda: bool(home.said("plan-kept")))
        assert home.conversations(first) == 1
        assert (await home.plan(models[0])).plan_id == first.plan_id


async def test_after_a_loss_the_one_in_use_is_planned_before_the_idle_ones(
    models: list[Checkpoint],
) -> None:
    """All were shared by both devices; one device holds two of the three."""
    room = size(models[0], Capacity(1, 256))
    async with Home.of(models, 2 * room, 2 * room) as home:
        await home.use(models[1])
        await home.use(models[2])
        await home.use(models[0])
        on_both = {peer(0), peer(1)}
        home.lose(1)
        reply = await home.want(models[0])
        assert reply.outcome is Outcome.OK
        await home.until(lambda: len(home.models_on(0)) == 2)
        assert "tiny0" in home.models_on(0)
        assert on_both - home.here == {peer(1)}


async def test_a_long_conversation_is_no_long_idleness(models: list[Checkpoint]) -> None:
    """Its model was asked for long ago, the idle one's after it; still the idle one leaves."""
    one = Capacity(1, 256)
    async with Home.of(models, size(models[0], one), size(models[1], one)) as home:
        first = await home.plan(models[0], one)
        home.talk(first)
        second = await home.use(models[1], one)
        assert len(first.devices) == len(second.devices) == 1
        home.lose(list(home.desks).index(first.devices[0]))
        assert (await home.plan(models[0], one)).devices == second.devices
        assert home.said("evicted")[0].startswith("tiny1 leaves to make room for tiny0")


async def test_when_a_model_fits_no_more_the_others_memory_is_theirs(
    models: list[Checkpoint],
) -> None:
    room = size(models[0], Capacity(1, 256))
    async with Home.of(models, room // 2 + room // 4, room // 2 + room // 4) as home:
        await home.use(models[0])
        home.lose(1)
        reply = await home.want(models[0])
        assert reply.outcome is Outcome.IMPOSSIBLE
        assert "does not fit" in reply.reason


async def test_a_new_leader_keeps_all_models_in_force(models: list[Checkpoint]) -> None:
    async with Home.of(models, 4 * size(models[0])) as home:
        plans = [await home.use(model) for model in models[:3]]
        assert home.view.epoch is not None
        home.view = replace(home.view, leader=None)
        await asyncio.sleep(0.05)
        assert (await home.want(models[0])).outcome is Outcome.RETRY
        counter = home.view.epoch.counter + 3
        home.view = replace(home.view, leader=peer(0), epoch=Epoch(counter, peer(0)))
        known = home.desks[peer(0)].known
        await home.until(
            lambda: len(known()) == 3 and not {p.plan_id for p in plans} & set(known())
        )
        assert home.models_on(0) == {"tiny0", "tiny1", "tiny2"}
        assert not home.said("evicted")


async def test_a_device_that_was_away_ends_what_left_meanwhile(models: list[Checkpoint]) -> None:
    """Not asked for anything, it is told."""
    room = size(models[0])
    async with Home.of(models, room, room) as home:
        first = await home.use(models[0])
        away = list(home.desks).index(first.devices[0])
        home.lose(away)
        await home.use(models[1])
        await home.until(lambda: home.models_on(1 - away) == {"tiny1"})
        home.here.add(peer(away))
        home._show()
        home.coordinator.on_view_changed()
        await home.until(lambda: first.plan_id not in home.desks[peer(away)].known())


async def test_a_device_that_comes_and_goes_is_left_alone_and_the_others_work_on(
    models: list[Checkpoint],
) -> None:
    """Test 12: from its second departure on nothing is planned with it, or anew because of it."""
    room = size(models[0])
    async with Home.of(models, room, room) as home:
        first = await home.use(models[0])
        flapping = list(home.desks).index(first.devices[0])
        for _ in range(8):
            home.lose(flapping)
            plan = await home.use(models[0])
            home.come_back(flapping)
            await asyncio.sleep(0.02)
        assert peer(flapping) not in plan.devices
        assert len(home.said("installed")) <= 4
        assert (await home.use(models[0])).plan_id == plan.plan_id, "nobody lost a place over it"


async def test_a_device_that_flaps_is_planned_with_where_nothing_else_would_do(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, size(models[0])) as home:
        await home.use(models[0])
        for _ in range(3):
            home.lose(0)
            home.come_back(0)
        assert (await home.use(models[0])).devices == (peer(0),)


async def test_the_next_plan_avoids_a_device_whose_work_does_not_get_on(
    models: list[Checkpoint],
) -> None:
    """Slow is not dead: it stays a member, its plan stays in force, and the next goes elsewhere."""
    room = 3 * size(models[0])
    async with Home.of(models, room, room) as home:
        first = await home.use(models[0])
        stuck = first.devices[0]
        home.view = replace(home.view, degraded=frozenset([stuck]))
        home.coordinator.on_view_changed()
        second = await home.use(models[1])
        assert stuck not in second.devices
        assert (await home.use(models[0])).plan_id == first.plan_id


# --- faults ---------------------------------------------------------------------------------------


async def test_a_model_that_is_used_again_while_it_should_leave_stays(
    models: list[Checkpoint],
) -> None:
    """Between the decision and the device somebody began to talk."""
    async with Home.of(models, 2 * size(models[0], Capacity(1, 256))) as home:
        first, second = await home.use(models[0]), await home.use(models[1])

        def begin(device: PeerId, topic: str) -> Exception | None:
            if topic == PREPARE_PLAN and not home.conversations(first):
                home.talk(first)
            return None

        home.fault = begin
        await home.plan(models[2])
        assert home.conversations(first) == 1
        assert home.models_on(0) == {"tiny0", "tiny2"}
        assert second.plan_id not in home.desks[peer(0)].known()


async def test_an_install_that_fails_is_tried_again_and_the_rest_stays_in_force(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, 3 * size(models[0])) as home:
        first = await home.plan(models[0])
        home.talk(first)
        failures = iter([LinkClosed("a hiccup")] * 2)

        def fail(device: PeerId, topic: str) -> Exception | None:
            return next(failures, None) if topic == COMMIT_PLAN else None

        home.fault = fail
        await home.plan(models[1])
        assert home.conversations(first) == 1
        assert len(home.said("plan-failed")) == 2


async def test_a_device_that_lost_its_share_unseen_gets_it_again(
    models: list[Checkpoint],
) -> None:
    """It followed another leader for a moment, and that one's word ended its plan."""
    async with Home.of(models, 3 * size(models[0])) as home:
        first = await home.use(models[0])
        desk = home.desks[peer(0)]
        assert home.view.epoch is not None
        await desk.installer.commit(Commit(home.view.epoch, ()), home.view.epoch)
        assert not desk.known()
        await home.plan(models[1])
        await home.until(lambda: home.models_on(0) == {"tiny0", "tiny1"})
        assert (await home.plan(models[0])).plan_id != first.plan_id


async def test_a_preview_installs_nothing_and_says_who_would_leave(
    models: list[Checkpoint],
) -> None:
    async with Home.of(models, size(models[0], Capacity(1, 256))) as home:
        first = await home.use(models[0])
        await home.until(lambda: bool(home.desks[peer(0)].known()))
        choice = await home.coordinator.preview(wish(models[1]))
        assert "tiny0 leaves" in choice.plan.reason
        assert home.desks[peer(0)].known() == {first.plan_id: 0}
        home.talk(first)
        with pytest.raises(NoRoom, match="tiny0 for 1 conversation"):
            await home.coordinator.preview(wish(models[1]))


async def test_a_device_that_computes_wrongly_is_left_out_until_it_has_been_away(
    models: list[Checkpoint],
) -> None:
    """Reliability test 18: only a device of the plan may say so, and not of itself."""
    half = size(models[0]) * 2 // 3
    async with Home.of(models, half, half, half) as home:
        plan = await home.plan(models[0])
        wrong, teller = plan.devices[-1], plan.devices[0]
        (other,) = set(home.desks) - set(plan.devices)
        blame = Blame(plan.model, plan.plan_id, wrong, "numbers that are not finite")
        home.coordinator.on_blame(other, blame)  # has no share
        home.coordinator.on_blame(wrong, blame)
        home.coordinator.on_blame(teller, replace(blame, plan=PlanId.new()))
        home.coordinator.on_blame(teller, replace(blame, device=other))
        assert await home.plan(models[0]) == plan
        home.coordinator.on_blame(teller, blame)
        after = await home.plan(models[0])
        assert set(after.devices) == {teller, other}
        number = list(home.desks).index(other)
        home.lose(number)
        reply = await home.want(models[0])
        assert reply.outcome is Outcome.IMPOSSIBLE, "the wrong one was taken after all"
        home.coordinator.on_gone(wrong)  # it was away
        home.here.add(other)
        home._show()
        home.coordinator.on_view_changed()
        assert len((await home.plan(models[0])).devices) == 2


# --- a device becomes slower ----------------------------------------------------------------------


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "LOOK_S", 0.02)


@asynccontextmanager
async def far_apart(models: list[Checkpoint]) -> AsyncIterator[Home]:
    """Two devices that answer so slowly that one notices, and better alone than together."""
    async with Home.of(models, 4 * size(models[0]), 4 * size(models[0])) as home:
        home.layer_s, home.bytes_per_s = 10e-3, 1e5
        yield home


async def looked(home: Home, times: int = 3) -> None:
    """The leader has looked so many times more, each time at new efforts."""
    for _ in range(times):
        home.turns += 16
        await home.until(partial(_asked, home, home.asked + 2 * len(home.desks)))


def _asked(home: Home, times: int) -> bool:
    return home.asked >= times


@pytest.mark.usefixtures("looks_often")
async def test_a_plan_leaves_a_device_that_became_slow_and_stays_where_it_is(
    models: list[Checkpoint],
) -> None:
    async with far_apart(models) as home:
        first = await home.use(models[0])
        (slow,) = first.devices
        await looked(home)
        assert (await home.plan(models[0])).plan_id == first.plan_id, "it goes as predicted"
        home.times[slow] = 4.0
        home.turns += 16
        await home.until(lambda: len(home.said("installed")) == 2)
        second = await home.plan(models[0])
        assert slow not in second.devices
        said = [text for text in home.said("planning") if "times as long as it measured" in text]
        assert len(said) == 1
        assert f"device{list(home.desks).index(slow)} takes 3.2 times as long" in said[0]
        await looked(home, 5)
        assert (await home.plan(models[0])).plan_id == second.plan_id
        assert len(home.said("installed")) == 2, "it does not flap"


@pytest.mark.usefixtures("looks_often")
async def test_a_conversation_ends_before_its_plan_is_replaced(models: list[Checkpoint]) -> None:
    async with far_apart(models) as home:
        first = await home.plan(models[0])
        session = home.talk(first)
        home.times[first.devices[0]] = 4.0
        await looked(home, 4)
        assert len(home.said("installed")) == 1
        home.hang_up(first, session)
        await home.until(lambda: len(home.said("installed")) == 2)
        assert first.devices[0] not in (await home.plan(models[0])).devices


@pytest.mark.usefixtures("looks_often")
async def test_slower_by_a_little_moves_nothing(models: list[Checkpoint]) -> None:
    async with far_apart(models) as home:
        first = await home.use(models[0])
        for times in (1.3, 0.9, 1.5, 1.0, 1.6):
            home.times[first.devices[0]] = times
            await looked(home, 1)
        assert (await home.plan(models[0])).plan_id == first.plan_id
        assert len(home.said("planning")) == 1


@pytest.mark.usefixtures("looks_often")
async def test_who_does_not_answer_for_its_efforts_changes_no_plan(
    models: list[Checkpoint],
) -> None:
    async with far_apart(models) as home:
        first = await home.use(models[0])
        home.times[first.devices[0]] = 4.0
        asked: list[PeerId] = []

        def silent(device: PeerId, topic: str) -> Exception | None:
            if topic != "plan.efforts":
                return None
            asked.append(device)
            return LinkClosed("no answer")

        home.fault = silent
        home.turns += 16
        await home.until(lambda: len(asked) >= 6)
        assert (await home.plan(models[0])).plan_id == first.plan_id
        home.fault = lambda device, topic: None
        await home.until(lambda: len(home.said("installed")) == 2)
