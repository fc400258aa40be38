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
    ModelRef,
    Outcome,
    PrepareReply,
    Report,
    Wish,
)
from apps.planning.rollout import DeviceUnable, reports, roll_out
from mesh.codec import to_plain
from mesh.errors import LinkClosed, RequestFailed
from mesh.ids import PeerId
from mesh.node import Node
from planner.plan import Plan
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


async def test_nobody_commits_before_all_have_prepared(plan_and_wish: tuple[Plan, Wish]) -> None:
    node = FakeNode(lambda device, topic: ready() if topic == PREPARE_PLAN else None)
    await roll_out(cast(Node, node), *plan_and_wish)
    topics = [topic for _, topic in node.asked]
    assert topics == [PREPARE_PLAN] * 3 + [COMMIT_PLAN] * 3


async def test_a_device_that_cannot_is_named(plan_and_wish: tuple[Plan, Wish]) -> None:
    def answer(device: PeerId, topic: str) -> Any:
        return ready(Outcome.IMPOSSIBLE, "the file is damaged") if device == peer(1) else ready()

    node = FakeNode(answer)
    with pytest.raises(DeviceUnable, match="the file is damaged") as caught:
        await roll_out(cast(Node, node), *plan_and_wish)
    assert caught.value.device == peer(1)
    assert COMMIT_PLAN not in {topic for _, topic in node.asked}


async def test_a_device_that_is_behind_is_asked_again_later(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    node = FakeNode(lambda device, topic: ready(Outcome.RETRY, "another epoch"))
    with pytest.raises(RequestFailed, match="another epoch") as caught:
        await roll_out(cast(Node, node), *plan_and_wish)
    assert not isinstance(caught.value, DeviceUnable)


async def test_one_lost_device_ends_the_wait_for_the_others(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    node = FakeNode(lambda device, _: LinkClosed("gone") if device == peer(2) else None)
    with pytest.raises(LinkClosed):
        await roll_out(cast(Node, node), *plan_and_wish)
    await asyncio.sleep(0)
    assert node.cancelled == 2


async def test_a_report_of_another_version_is_passed_over() -> None:
    good = to_plain(Report(None, None, 3))
    answers = {peer(0): good, peer(1): ["something", "else"], peer(2): LinkClosed("gone")}
    node = FakeNode(lambda device, _: answers[device])
    found = await reports(cast(Node, node), [peer(0), peer(1), peer(2)])
    assert [report.conversations for report in found] == [3]
