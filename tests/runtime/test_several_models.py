"""Two models in one pipeline: their conversations take turns, and know nothing of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Semaphore

import pytest
import pytest_asyncio
import torch

from mesh.errors import StaleEpoch
from mesh.ids import Epoch, PlanId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan
from runtime.sampling import Sampling
from runtime.session import Session, Wanted
from runtime.session_messages import OpenSession
from runtime.stage import Slice
from runtime.turns import Waiting, next_plan
from runtime.weights import Checkpoint
from tests.runtime.room import Device, Room, altered, make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma
from tests.runtime.whole_model import WholeModel

PROMPT = [2, 17, 40, 41, 99, 7, 3, 250, 12, 60]
TOKENS = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    folder: Path = tmp_path_factory.mktemp("models")
    one, two = (
        Checkpoint.open(write_tiny_gemma(folder / f"{seed}.gguf", layers=4, seed=seed))
        for seed in (1, 2)
    )
    return one, two


@pytest_asyncio.fixture
async def room(models: tuple[Checkpoint, Checkpoint]) -> AsyncIterator[Room]:
    async with Room.of(models[0], 2) as room:
        yield room


class OtherRoad(Room):
    """The road of a second model through the devices of a room."""

    def __init__(self, room: Room, plan: Plan, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.devices, self._plan = room.devices, plan


def session_of(
    room: Room, plan: Plan, checkpoint: Checkpoint, owner: int, tokens: int = TOKENS
) -> Session:
    wanted = Wanted(PROMPT, tokens, Sampling(), frozenset())
    road, steps = OtherRoad(room, plan, checkpoint), room.devices[peer(owner)].steps
    return Session(peer(owner), road, steps, checkpoint.traffic, wanted)


async def collect(session: Session) -> list[int]:
    return [chosen.token async for chosen in session.tokens()]


async def test_conversations_of_two_models_run_at_once(
    room: Room, models: tuple[Checkpoint, Checkpoint]
) -> None:
    first, second = make_plan(models[0], (2,)), make_plan(models[1], (3,), 2, devices=(1, 0))
    await room.put_up(first)
    room.install(second, models[1])
    texts = await asyncio.gather(
        collect(room.session(0, PROMPT, TOKENS)),
        collect(session_of(room, second, models[1], 1)),
        collect(room.session(1, PROMPT, TOKENS)),
    )
    expected = [WholeModel(model).generate(PROMPT, TOKENS)[0] for model in models]
    assert texts == [expected[0], expected[1], expected[0]]


async def test_another_plan_for_one_model_is_no_pause_for_the_other(
    room: Room, models: tuple[Checkpoint, Checkpoint]
) -> None:
    await room.put_up(make_plan(models[0], (2,)))
    second = make_plan(models[1], (2,), 2)
    room.install(second, models[1])
    other = session_of(room, second, models[1], 0)
    tokens = []
    async for chosen in other.tokens():
        tokens.append(chosen.token)
        if len(tokens) == 5:
            await room.put_up(make_plan(models[0], (1,), 3))
    assert other.replays == 0
    assert tokens == WholeModel(models[1]).generate(PROMPT, TOKENS)[0]


async def test_frames_of_a_plan_that_left_are_refused_and_the_other_goes_on(
    room: Room, models: tuple[Checkpoint, Checkpoint]
) -> None:
    await room.put_up(make_plan(models[0], ()))
    left = make_plan(models[1], (), 2)
    room.install(left, models[1])
    device = room.devices[peer(0)]
    session = opened(device, left)
    device.pipeline.end(left.plan_id)
    device.deliver(peer(0), frame(left, session, 1))
    assert device.pipeline.refused["stale epoch or plan"] == 1
    text = await collect(room.session(0, PROMPT, TOKENS))
    assert text == WholeModel(models[0]).generate(PROMPT, TOKENS)[0]


async def test_an_owner_hears_that_its_plan_ended_on_a_stage(
    room: Room, models: tuple[Checkpoint, Checkpoint]
) -> None:
    """Also between two steps, when it waits for nothing: the next step would have no answer."""
    plan = make_plan(models[0], (2,))
    await room.put_up(plan)
    owner, other = room.devices[peer(0)], room.devices[peer(1)]
    session = opened(other, plan, owner)
    with owner.steps.lease(plan, session, models[0].traffic) as lease:
        other.pipeline.end(plan.plan_id)
        assert lease.over is None, "the leader tells of a new plan"
        other.install(plan, models[0])
        opened(other, plan, owner, session)
        other.pipeline.end(plan.plan_id, "another model needs the room")
        with pytest.raises(StaleEpoch, match="needs the room"):
            owner.steps.begin(lease, 0, [1], choose=False)


async def test_a_frame_must_name_the_epoch_of_its_own_plan(
    room: Room, models: tuple[Checkpoint, Checkpoint]
) -> None:
    """The other plan's epoch, though newer, is no passport."""
    first, second = make_plan(models[0], ()), make_plan(models[1], (), 2)
    await room.put_up(first)
    room.install(second, models[1])
    device = room.devices[peer(0)]
    session = opened(device, first)
    good = frame(first, session, 1)
    for forged in (Epoch(2, peer(0)), Epoch(1, peer(1))):
        device.deliver(peer(0), altered(good, epoch=forged))
    assert device.pipeline.refused["stale epoch or plan"] == 2


async def test_a_long_prompt_of_one_model_does_not_stop_the_others_stream(
    room: Room, models: tuple[Checkpoint, Checkpoint]
) -> None:
    """Between two slices of the prompt there is a turn of the other model."""
    first, second = make_plan(models[0], ()), make_plan(models[1], (), 2)
    await room.put_up(first)
    room.install(second, models[1])
    device = room.devices[peer(0)]
    device.pipeline._work[first.plan_id].pace.row_s = 60.0  # a slow device: many slices
    turns: list[str] = []
    gate = Semaphore(0)
    watch(device, first, lambda: (turns.append("long"), gate.acquire()))
    watch(device, second, lambda: turns.append("short"))
    device.deliver(peer(0), frame(first, opened(device, first), 200))
    for count in range(1, 4):
        device.deliver(peer(0), frame(second, opened(device, second), 1))
        gate.release()
        async with asyncio.timeout(10):
            while turns.count("short") < count:
                await asyncio.sleep(0.001)
    for _ in range(200):
        gate.release()
    assert turns[:6] == ["long", "short"] * 3


def test_turns_go_round() -> None:
    plans = [PlanId.new() for _ in range(3)]
    waiting = [Waiting(header(plan), torch.zeros(1, 1)) for plan in (*plans, plans[0])]
    last: dict[PlanId, int] = {}
    order = []
    for turn in range(6):
        order.append(next_plan(waiting, last))
        last[order[-1]] = turn
    assert order == plans * 2
    assert next_plan(waiting[3:], last) == plans[0], "whoever waits alone is next again"


def watch(device: Device, plan: Plan, before: Callable[[], object]) -> None:
    """Calls `before` in the worker as it comes to a turn of the plan."""
    stage = device.pipeline._work[plan.plan_id].post.stage
    compute = stage.turn

    def watched(slices: list[Slice]) -> list[torch.Tensor | None]:
        before()
        return compute(slices)

    stage.turn = watched  # type: ignore[method-assign]


def opened(
    device: Device, plan: Plan, owner: Device | None = None, session: SessionId | None = None
) -> SessionId:
    session = session or SessionId.new()
    me = (owner or device).me
    device.pipeline.open(OpenSession(plan.epoch, plan.plan_id, session, me, Sampling(), 256))
    return session


def frame(plan: Plan, session: SessionId, rows: int) -> TensorFrame:
    """A whole step of a prompt, in one tile."""
    tokens = torch.full((rows, 1), 17, dtype=torch.int32)
    made = FrameHeader(
        plan.epoch, plan.plan_id, session, Kind.TOKENS, DType.INT32, False, 0, rows, 0, rows, 1
    )
    return TensorFrame(made, tokens.numpy().data.cast("B"))


def header(plan: PlanId) -> FrameHeader:
    return FrameHeader(
        Epoch(1, peer(0)), plan, SessionId.new(), Kind.TOKENS, DType.INT32, False, 0, 1, 0, 1, 1
    )
