"""Several plans on one device: what comes, what stays untouched, what goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from apps.planning.messages import Commit
from mesh.errors import Busy, PlanError, StaleEpoch
from mesh.ids import SessionId
from planner.memory import held_bytes
from planner.plan import Capacity, Plan
from runtime.compute.precision import Precision
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.stage import Slice
from runtime.weights import Checkpoint
from tests.apps.desk import Desk, epoch, in_force, planned, tiny_checkpoints, wish_for


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Checkpoint]:
    return tiny_checkpoints(tmp_path_factory.mktemp("models"), 3)


@pytest.fixture
def desk(models: list[Checkpoint]) -> Iterator[Desk]:
    with Desk.of(models) as desk:
        yield desk


async def install(desk: Desk, model: Checkpoint, counter: int, *stay: Plan, **how: object) -> Plan:
    """Both phases, with the `stay` in force beside it."""
    plan = planned(model, counter, **how)
    await desk.prepare(plan, wish_for(model, plan), *stay)
    others = [(one, wish_for(model_of(desk, one), one)) for one in stay]
    request = Commit(plan.epoch, in_force((plan, wish_for(model, plan)), *others))
    assert await desk.installer.commit(request, plan.epoch) == ()
    return plan


def model_of(desk: Desk, plan: Plan) -> Checkpoint:
    return desk.holdings.models[plan.model].checkpoint


async def test_a_second_model_interrupts_nobody(desk: Desk, models: list[Checkpoint]) -> None:
    first = await install(desk, models[0], 1)
    session = desk.open(first)
    with desk.steps.lease(first, session, models[0].traffic) as lease:
        second = await install(desk, models[1], 2, first)
        assert lease.over is None
        desk.open(second)
        assert desk.known() == {first.plan_id: 1, second.plan_id: 1}
        again = await install(desk, models[1], 3, first)
        assert lease.over is None
    assert desk.known() == {first.plan_id: 1, again.plan_id: 0}


async def test_the_weights_add_up_and_go_with_their_model(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    alone = desk.holdings.size_bytes
    second = await install(desk, models[1], 2, first)
    assert (
        desk.holdings.size_bytes
        == 2 * alone
        == sum(held.size_bytes for held in desk.holdings.models.values())
    )
    await install(desk, models[2], 3, second)
    assert desk.holdings.models.keys() == {models[1].model_id, models[2].model_id}
    assert desk.holdings.size_bytes == 2 * alone


async def test_who_leaves_goes_before_the_new_one_is_loaded(models: list[Checkpoint]) -> None:
    """There is never more in memory than may be, not for a moment."""
    whole = planned(models[0], 1).predicted.memory_bytes[0][1]
    with Desk.of(models, memory_bytes=2 * whole) as desk:
        first = await install(desk, models[0], 1)
        second = await install(desk, models[1], 2, first)
        third = planned(models[2], 3)
        wish = wish_for(models[2], third)
        with pytest.raises(PlanError, match="the other models"):
            await desk.prepare(third, wish, first, second)
        await desk.prepare(third, wish, second, leave=(first,))
        assert desk.holdings.models.keys() == {models[1].model_id, models[2].model_id}
        assert desk.known().keys() == {second.plan_id}


async def test_one_that_is_in_use_again_does_not_leave(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    session = desk.open(first)
    second = planned(models[1], 2)
    with desk.steps.lease(first, session, models[0].traffic) as lease:
        with pytest.raises(Busy):
            await desk.prepare(second, wish_for(models[1], second), leave=(first,))
        assert lease.over is None
    assert desk.known() == {first.plan_id: 1}


async def test_frames_and_sessions_of_a_model_that_left_are_refused(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    session = desk.open(first)
    with desk.steps.lease(first, session, models[0].traffic) as lease:
        await install(desk, models[1], 2)  # as of a leader that knows nothing of the first
        assert isinstance(lease.over, StaleEpoch)
    with pytest.raises(StaleEpoch):
        desk.open(first)


async def test_a_device_that_was_away_hears_what_is_in_force_and_ends_the_rest(
    desk: Desk, models: list[Checkpoint]
) -> None:
    """It has plans of before; meanwhile one model left and the other moved to other devices."""
    await install(desk, models[0], 1)
    await install(desk, models[1], 2)
    moved = planned(models[1], 5, devices=(7,))
    request = Commit(epoch(9), in_force((moved, wish_for(models[1], moved))))
    assert await desk.installer.commit(request, epoch(9)) == ()
    assert desk.known() == {moved.plan_id: 0}
    assert not desk.holdings.models
    assert desk.pipeline.conversations == 0


async def test_a_device_says_what_it_should_hold_and_does_not(
    desk: Desk, models: list[Checkpoint]
) -> None:
    stale = await install(desk, models[0], 1)
    meant = planned(models[0], 4)
    request = Commit(epoch(6), in_force((meant, wish_for(models[0], meant))))
    assert await desk.installer.commit(request, epoch(6)) == (meant.plan_id,)
    with pytest.raises(StaleEpoch):
        desk.open(stale)


async def test_hearing_it_twice_changes_nothing(desk: Desk, models: list[Checkpoint]) -> None:
    first = await install(desk, models[0], 1)
    session = desk.open(first)
    with desk.steps.lease(first, session, models[0].traffic) as lease:
        request = Commit(epoch(1), in_force((first, wish_for(models[0], first))))
        assert await desk.installer.commit(request, epoch(1)) == ()
        assert lease.over is None
    assert desk.known() == {first.plan_id: 1}


@pytest.mark.parametrize("accepted", [None, epoch(1), epoch(3)])
async def test_plans_of_another_epoch_are_refused(
    desk: Desk, models: list[Checkpoint], accepted: object
) -> None:
    plan = planned(models[0], 2)
    with pytest.raises(StaleEpoch, match="of epoch 2/"):
        await desk.installer.commit(Commit(plan.epoch, ()), accepted)  # type: ignore[arg-type]


async def test_a_smaller_room_ends_no_conversation(desk: Desk, models: list[Checkpoint]) -> None:
    first = await install(desk, models[0], 1, sessions=4)
    sessions = [desk.open(first), desk.open(first)]
    smaller = replace(first, capacity=Capacity(2, first.capacity.context))
    await install(desk, models[1], 2, smaller)
    assert desk.known()[first.plan_id] == 2
    with pytest.raises(Busy, match="all 2 places"):
        desk.open(first)
    desk.pipeline.close(sessions[0], desk.me)
    desk.open(first)
    (known,) = [o for o in desk.installer.report().known if o.plan.model == first.model]
    assert known.plan.capacity.sessions == 2
    wish = wish_for(models[0], first)
    room = held_bytes(wish.profile, known.plan.stages[0].layers, known.plan.capacity)
    assert dict(known.plan.predicted.memory_bytes)[desk.me] == room


async def test_conversations_are_made_shorter_only_where_there_are_none(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    shorter = replace(first, capacity=Capacity(first.capacity.sessions, 12))
    session = desk.open(first)
    second = planned(models[1], 2)
    with pytest.raises(Busy, match="less room"):
        await desk.prepare(second, wish_for(models[1], second), shorter)
    desk.pipeline.close(session, desk.me)
    await install(desk, models[1], 3, shorter)
    with pytest.raises(StaleEpoch, match="by now there is room for 12 tokens"):
        desk.open(first)  # by an owner who heard of the longer one


async def test_a_plan_given_up_leaves_no_weights_behind(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    given_up = planned(models[1], 2)
    await desk.prepare(given_up, wish_for(models[1], given_up), first)
    assert models[1].model_id in desk.holdings.models
    request = Commit(epoch(3), in_force((first, wish_for(models[0], first))))
    await desk.installer.commit(request, epoch(3))
    assert desk.holdings.models.keys() == {models[0].model_id}


async def test_a_newer_plan_ends_the_loading_of_an_older_one(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    older, newer = planned(models[1], 2), planned(models[2], 3)
    preparing = asyncio.ensure_future(desk.prepare(older, wish_for(models[1], older), first))
    await asyncio.sleep(0)
    await desk.prepare(newer, wish_for(models[2], newer), first)
    with pytest.raises(StaleEpoch, match="given up"):
        await preparing
    assert desk.holdings.models.keys() == {models[0].model_id, models[2].model_id}


async def test_another_precision_replaces_the_model(desk: Desk, models: list[Checkpoint]) -> None:
    await install(desk, models[0], 1)
    compact = desk.holdings.size_bytes
    exact = models[0].at(Precision.FP32)
    plan = await install(desk, exact, 2)
    assert desk.known() == {plan.plan_id: 0}
    assert desk.holdings.models[models[0].model_id].checkpoint.precision is Precision.FP32
    assert desk.holdings.size_bytes > 2 * compact


async def test_an_owner_takes_the_leaders_word_for_plans_it_has_no_share_in(
    desk: Desk, models: list[Checkpoint]
) -> None:
    plans = [planned(model, n + 1, devices=(7,)) for n, model in enumerate(models)]
    for plan, model in zip(plans, models, strict=True):
        await desk.installer.wait_in_force(plan, wish_for(model, plan))
    assert desk.known().keys() == {plan.plan_id for plan in plans}
    older = planned(models[0], 0, devices=(7,))
    with pytest.raises(StaleEpoch, match="was replaced"):
        await desk.installer.wait_in_force(older, wish_for(models[0], older))


async def test_how_long_a_model_is_idle_survives_its_next_plan(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = planned(models[0], 1)
    await desk.prepare(first, wish_for(models[0], first))
    (told,) = in_force((first, wish_for(models[0], first)))
    await desk.installer.commit(Commit(first.epoch, (replace(told, idle_s=500.0),)), first.epoch)
    (known,) = desk.installer.report().known
    assert 500.0 <= known.idle_s < 510.0
    session: SessionId = desk.open(first)
    assert desk.installer.report().known[0].idle_s == 0.0
    desk.pipeline.close(session, desk.me)
    assert desk.installer.report().known[0].idle_s < 10.0
    second = planned(models[0], 2)
    await desk.prepare(second, wish_for(models[0], second))
    (told,) = in_force((second, wish_for(models[0], second)))
    await desk.installer.commit(Commit(second.epoch, (replace(told, idle_s=500.0),)), epoch(2))
    assert desk.installer.report().known[0].idle_s < 10.0, "this device knows better"


def slices(session: SessionId, position: int, count: int) -> list[Slice]:
    rows = torch.arange(60 + position, 60 + position + count, dtype=torch.int32).unsqueeze(1)
    return [Slice(session, position, rows, choose=False)]


async def test_a_conversation_keeps_its_caches_from_plan_to_plan(
    desk: Desk, models: list[Checkpoint]
) -> None:
    """This device gets more layers than it had, and then fewer; what it still has goes on."""
    first = await install(desk, models[0], 1, devices=(0, 7), cuts=(2,))
    session, name = SessionId.new(), SessionId.new()
    assert opened(desk, first, session, name) == (0, 0)
    post = desk.pipeline._work[first.plan_id].post
    await desk.worker.run(post.stage.turn, slices(session, 0, 5))
    wider = await install(desk, models[0], 2, devices=(0, 7), cuts=(3,))
    assert opened(desk, wider, again := SessionId.new(), name) == (5, 5, 0)
    assert desk.known() == {wider.plan_id: 1}
    desk.pipeline.close(again, desk.me, paused=True)
    narrower = await install(desk, models[0], 3, devices=(0, 7), cuts=(1,))
    assert opened(desk, narrower, SessionId.new(), name) == (5,)
    assert opened(desk, narrower, SessionId.new(), SessionId.new()) == (0,), "a stranger's is empty"


async def test_another_precision_goes_on_from_no_cache(
    desk: Desk, models: list[Checkpoint]
) -> None:
    first = await install(desk, models[0], 1)
    session, name = SessionId.new(), SessionId.new()
    opened(desk, first, session, name)
    post = desk.pipeline._work[first.plan_id].post
    await desk.worker.run(post.stage.turn, slices(session, 0, 5))
    exact = await install(desk, models[0].at(Precision.FP32), 2)
    assert set(opened(desk, exact, SessionId.new(), name)) == {0}


def opened(desk: Desk, plan: Plan, session: SessionId, name: SessionId) -> tuple[int, ...]:
    """How many tokens of the conversation each layer here has, as its owner is told."""
    request = OpenSession(
        plan.epoch, plan.plan_id, session, desk.me, Sampling(), 16, conversation=name
    )
    return desk.pipeline.open(request).layers
