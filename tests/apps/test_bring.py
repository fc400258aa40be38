"""The weights of a plan's shares, before its epoch begins: long waits, refusals, losses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from apps.models import bringer as bringer_module
from apps.models.bringer import Bringer
from apps.models.fetcher import Fetcher
from apps.models.library import Library
from apps.models.messages import BRING_SHARE, BringReply, BringRequest, TransferState
from apps.planning import rollout
from apps.planning.messages import ModelRef, Outcome, Wish
from apps.planning.refusals import MAX_REFUSALS, Refusals
from apps.planning.rollout import DeviceLacks, DeviceRefused, DeviceUnable, bring_shares
from mesh.codec import to_plain
from mesh.errors import (
    DiskFull,
    LinkClosed,
    ModelNotFound,
    NowhereHere,
    PlanError,
    PotluckError,
    WeightsMissing,
)
from mesh.ids import ModelId, PeerId
from mesh.membership import View
from mesh.node import Node
from planner.plan import Plan, Span
from runtime.weights import Checkpoint
from tests.runtime.room import make_plan, peer

MODEL = ModelRef(ModelId("ab" * 32), "house", "")
Answer = Callable[[PeerId], BringReply | Exception]


class FakeNode:
    """Every request is answered by a function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.view = View(peer(0), (), None, None, 1)
        self.asked: list[PeerId] = []

    async def request(self, device: PeerId, topic: str, body: Any, timeout_s: float) -> Any:
        assert topic == BRING_SHARE
        self.asked.append(device)
        await asyncio.sleep(0)
        answer = self._answer(device)
        if isinstance(answer, Exception):
            raise answer
        return to_plain(answer)


def reply(outcome: Outcome, reason: str = "", done: int = 0) -> BringReply:
    return BringReply(outcome, reason, done, 100)


@pytest.fixture(scope="module")
def plan_and_wish(tiny_path: Path) -> tuple[Plan, Wish]:
    checkpoint = Checkpoint.open(tiny_path)
    plan = make_plan(checkpoint, (2, 4))
    return plan, Wish(MODEL, checkpoint.profile(), plan.capacity)


async def bring(node: FakeNode, plan_and_wish: tuple[Plan, Wish]) -> None:
    await bring_shares(cast(Node, node), *plan_and_wish)


async def test_a_long_transfer_is_waited_for(plan_and_wish: tuple[Plan, Wish]) -> None:
    asked: dict[PeerId, int] = {}

    def answer(device: PeerId) -> BringReply:
        asked[device] = asked.get(device, 0) + 1
        if device == peer(1) and asked[device] < 50:
            return reply(Outcome.WAIT, done=asked[device])
        return reply(Outcome.OK)

    await bring(FakeNode(answer), plan_and_wish)
    assert asked == {peer(0): 1, peer(1): 50, peer(2): 1}


async def test_a_transfer_that_stands_still_is_given_up(
    plan_and_wish: tuple[Plan, Wish], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "BRING_STALL_S", 0.01)

    def answer(device: PeerId) -> BringReply:
        return reply(Outcome.WAIT, done=7) if device == peer(2) else reply(Outcome.OK)

    with pytest.raises(DeviceLacks, match="got no more of house") as caught:
        await bring(FakeNode(answer), plan_and_wish)
    assert caught.value.device == peer(2)


async def test_what_nobody_has_is_nobodys_fault(plan_and_wish: tuple[Plan, Wish]) -> None:
    """No other plan would help, so none is tried."""
    text = "no device here has layers 2..3 of house"
    node = FakeNode(lambda device: BringReply(Outcome.RETRY, text, 0, 0, is_nowhere=True))
    before = replace(plan_and_wish[0], stages=plan_and_wish[0].stages[2:])
    with pytest.raises(PlanError, match=rf"{text}: {peer(2).short} had them.*potluck pull house"):
        await bring_shares(cast(Node, node), *plan_and_wish, before)


@pytest.mark.parametrize(
    ("outcome", "kind"), [(Outcome.IMPOSSIBLE, DeviceUnable), (Outcome.RETRY, DeviceLacks)]
)
async def test_a_device_that_cannot_is_named(
    plan_and_wish: tuple[Plan, Wish], outcome: Outcome, kind: type[DeviceRefused]
) -> None:
    def answer(device: PeerId) -> BringReply:
        if device == peer(1):
            return reply(outcome, "the disk is full")
        return reply(Outcome.WAIT)

    with pytest.raises(kind, match="the disk is full") as caught:
        await bring(FakeNode(answer), plan_and_wish)
    assert caught.value.device == peer(1)


async def test_one_lost_device_ends_the_wait_for_the_others(
    plan_and_wish: tuple[Plan, Wish],
) -> None:
    node = FakeNode(lambda device: LinkClosed("gone") if device == peer(0) else reply(Outcome.WAIT))
    with pytest.raises(LinkClosed):
        await bring(node, plan_and_wish)
    asked = len(node.asked)
    await asyncio.sleep(0.01)
    assert len(node.asked) <= asked + 2


# --- on the device -------------------------------------------------------------------------------


class FakeLibrary:
    """A share comes when it is told to."""

    def __init__(self) -> None:
        self.shares: list[asyncio.Future[None]] = []

    async def share(self, reference: ModelRef, span: Span, cut: object = None) -> None:
        coming: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.shares.append(coming)
        await coming


class FakeFetcher:
    def __init__(self) -> None:
        self.transfers = [TransferState("house", MODEL.model, 30, 100, 1.0, ())]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    monkeypatch.setattr(bringer_module, "ANSWER_S", 0.01)
    return FakeLibrary()


@pytest.fixture
def bringer(library: FakeLibrary) -> Bringer:
    return Bringer(cast(Library, library), cast(Fetcher, FakeFetcher()))


async def test_the_leader_hears_how_far_it_is_and_then_that_it_is_done(
    library: FakeLibrary, bringer: Bringer
) -> None:
    request = BringRequest(MODEL, Span(0, 3))
    assert await bringer.bring(request) == BringReply(Outcome.WAIT, "", 30, 100)
    assert await bringer.bring(request) == BringReply(Outcome.WAIT, "", 30, 100)
    assert len(library.shares) == 1, "asked again, it went on with the same share"
    library.shares[0].set_result(None)
    assert (await bringer.bring(request)).outcome is Outcome.OK


async def test_another_share_ends_the_first(library: FakeLibrary, bringer: Bringer) -> None:
    await bringer.bring(BringRequest(MODEL, Span(0, 3)))
    await bringer.bring(BringRequest(MODEL, Span(3, 6)))
    first, second = library.shares
    assert first.cancelled()
    assert not second.done()
    await bringer.close()
    assert second.cancelled()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (WeightsMissing("nobody has it"), Outcome.RETRY),
        (NowhereHere("nobody has it", frozenset({3})), Outcome.RETRY),
        (ModelNotFound("nobody has it"), Outcome.RETRY),
        (DiskFull("full"), Outcome.IMPOSSIBLE),
        (OSError("the disk is gone"), Outcome.IMPOSSIBLE),
    ],
)
async def test_what_goes_wrong_is_told(
    library: FakeLibrary, bringer: Bringer, error: PotluckError | OSError, outcome: Outcome
) -> None:
    request = BringRequest(MODEL, Span(0, 3))
    await bringer.bring(request)
    library.shares[0].set_exception(error)
    told = await bringer.bring(request)
    assert (told.outcome, told.reason) == (outcome, str(error))
    assert told.is_nowhere == isinstance(error, NowhereHere)
    await bringer.bring(request)
    assert len(library.shares) == 2, "asked again, it tries again"
    await bringer.close()


# --- who is left out -----------------------------------------------------------------------------


def test_a_device_that_cannot_stays_out_until_it_was_away() -> None:
    refusals = Refusals()
    refusals.count(DeviceUnable(peer(1), "its disk is full"))
    assert refusals.out == {peer(1): "its disk is full"}
    assert refusals.planned() == frozenset()
    assert peer(1) in refusals.out
    refusals.forget(peer(1))
    assert refusals.out == {}


def test_a_device_without_weights_is_left_out_once_and_looked_at_again() -> None:
    refusals = Refusals()
    refusals.count(DeviceLacks(peer(1), "nobody gives it house"))
    assert peer(1) in refusals.out
    assert refusals.planned() == {peer(1)}
    assert refusals.out == {}


def test_not_now_is_taken_several_times() -> None:
    refusals = Refusals()
    for _ in range(MAX_REFUSALS - 1):
        refusals.count(DeviceRefused(peer(1), "another epoch"))
        assert refusals.out == {}
    refusals.count(DeviceRefused(peer(1), "another epoch"))
    assert refusals.out == {peer(1): "another epoch"}
