"""The leader's two phases against devices that refuse, vanish or answer nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from apps.planning.messages import (
    COMMIT_PLAN,
    PREPARE_PLAN,
    Commit,
    CommitReply,
    InForce,
    Known,
    ModelRef,
    Outcome,
    PrepareReply,
    Report,
    Wish,
)
from apps.planning.rollout import (
    DeviceRefused,
    DeviceUnable,
    StillInUse,
    commit,
    prepare,
    reports,
)
from mesh.codec import from_plain, to_plain
from mesh.errors import LinkClosed, RequestFailed
from mesh.ids import Epoch, ModelId, PeerId, PlanId
from mesh.limits import MAX_NAME_CHARS
from mesh.messages import Reply, Request, decode_message, encode_message
from mesh.node import Node
from planner.choose import MAX_SEARCHED_DEVICES
from planner.plan import Capacity, Effort, Job, Plan, Prediction, Share, Span, Stage, StageForecast
from planner.profile import Cuttable, LayerProfile, ModelProfile
from planner.room import MAX_MODELS
from runtime.weights import Checkpoint
from tests.runtime.room import make_plan, peer

Answer = Callable[[PeerId, str], Any]


class FakeNode:
    """Answers requests from a function; keeps what was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[tuple[PeerId, str]] = []
        self.cancelled = 0

    async def request(self, device: PeerId, topic: str, body: Any, timeout_s: float) -> Any:
        self.asked.append((device, topic))
        answer = self._answer(device, topic)
        if isinstance(answer, Exception):
            raise answer
        if answer is None and topic == PREPARE_PLAN:
            try:
                await asyncio.get_running_loop().create_future()  # never answers
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return answer


@pytest.fixture(scope="module")
def plan_and_wish(tiny_path: Path) -> tuple[Plan, Wish]:
    checkpoint = Checkpoint.open(tiny_path)
    plan = make_plan(checkpoint, (2, 4))
    reference = ModelRef(checkpoint.model_id, checkpoint.name, str(tiny_path))
    return plan, Wish(reference, checkpoint.profile(), plan.capacity)


def ready(outcome: Outcome = Outcome.OK, reason: str = "") -> Any:
    return to_plain(PrepareReply(outcome, reason))


async def test_a_device_says_what_it_lacks_of_the_plans_in_force(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    plan, wish = plan_and_wish

    def answer(device: PeerId, topic: str) -> Any:
        assert topic == COMMIT_PLAN
        return to_plain(CommitReply((plan.plan_id,) if device == peer(1) else ()))

    in_force = (InForce(plan, wish, 0.0),)
    lacks = await commit(cast(Node, FakeNode(answer)), plan.devices, plan.epoch, in_force)
    assert lacks == {plan.plan_id}


async def test_what_is_to_leave_and_is_in_use_again_stops_the_plan(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    """And it is nobody's fault: no device is left out for it."""
    node = FakeNode(lambda device, topic: ready(Outcome.BUSY, "it is in use again"))
    with pytest.raises(StillInUse, match="in use again") as caught:
        await prepare(cast(Node, node), *plan_and_wish, (), (plan_and_wish[0].plan_id,))
    assert not isinstance(caught.value, DeviceRefused)


async def test_a_device_that_cannot_is_named(plan_and_wish: tuple[Plan, Wish]) -> None:
    def answer(device: PeerId, topic: str) -> Any:
        return ready(Outcome.IMPOSSIBLE, "the file is damaged") if device == peer(1) else ready()

    node = FakeNode(answer)
    with pytest.raises(DeviceUnable, match="the file is damaged") as caught:
        await prepare(cast(Node, node), *plan_and_wish, (), ())
    assert caught.value.device == peer(1)


async def test_a_device_that_is_behind_is_asked_again_later(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    node = FakeNode(lambda device, topic: ready(Outcome.RETRY, "another epoch"))
    with pytest.raises(RequestFailed, match="another epoch") as caught:
        await prepare(cast(Node, node), *plan_and_wish, (), ())
    assert not isinstance(caught.value, DeviceUnable)


async def test_one_lost_device_ends_the_wait_for_the_others(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    node = FakeNode(lambda device, _: LinkClosed("gone") if device == peer(2) else None)
    with pytest.raises(LinkClosed):
        await prepare(cast(Node, node), *plan_and_wish, (), ())
    await asyncio.sleep(0)
    assert node.cancelled == 2


async def test_a_report_of_another_version_is_passed_over() -> None:
    good = to_plain(Report(()))
    answers = {peer(0): good, peer(1): ["something", "else"], peer(2): LinkClosed("gone")}
    node = FakeNode(lambda device, _: answers[device])
    assert await reports(cast(Node, node), [peer(0), peer(1), peer(2)]) == [Report(())]


def test_what_is_known_of_the_most_models_in_force_fits_a_message() -> None:
    """Of large models on as many devices as are searched, with all that a plan may say one day."""
    layers = (LayerProfile(10**10, 10**6, 4096, cut=1),) * 128
    cut = Cuttable(*[10**5] * 6, *[10**9] * 6)
    in_force = []
    for number in range(MAX_MODELS):
        model = ModelId(f"{number:064x}")
        every = Span(0, 10**5)
        stages = tuple(
            Stage(Span(n, n + 1), (Share(peer(n), every, every, every, every, every),))
            for n in range(MAX_SEARCHED_DEVICES)
        )
        memory = tuple((peer(n), 10**12) for n in range(MAX_SEARCHED_DEVICES))
        effort = Effort(0.1, 0.1, 0.1)
        forecasts = tuple(StageForecast(n, 0, effort, effort) for n in range(MAX_SEARCHED_DEVICES))
        plan = Plan(
            Epoch(10**9, peer(0)),
            PlanId.new(),
            model,
            "m" * MAX_NAME_CHARS,
            Job.RUN,
            stages,
            Capacity(32, 131_072),
            "r" * 1000,
            Prediction(1.0, 0.1, 10**6, memory, forecasts),
            tuple(Share(peer(n), vocab=every) for n in range(MAX_SEARCHED_DEVICES)),
        )
        profile = ModelProfile(
            model, plan.model_name, layers, 10**10, 8192, 256_000, 131_072, (cut, cut)
        )
        wish = Wish(ModelRef(model, plan.model_name, "/" * 255), profile, plan.capacity)
        in_force.append(Known(plan, wish, 1.0, 32))
    report = Reply(1, None, to_plain(Report(tuple(in_force))))
    decoded = decode_message(encode_message(report))
    assert isinstance(decoded, Reply)
    assert from_plain(Report, decoded.body) == Report(tuple(in_force))
    told = tuple(InForce(one.plan, one.wish, one.idle_s) for one in in_force)
    commit = Request(1, COMMIT_PLAN, to_plain(Commit(Epoch(10**9, peer(0)), told)))
    assert decode_message(encode_message(commit)) == commit
