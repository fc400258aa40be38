"""What the other members say they have: whose copy counts, and who is named when copies differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from apps.models.fetcher import Fetcher
from apps.models.messages import FIND_MODEL, HAVE_MODEL, NOTHING, FindReply, HaveReply, Pull
from apps.models.shelf import Shelf
from apps.planning.messages import ModelRef
from apps.timeline import Timeline
from mesh.codec import to_plain
from mesh.errors import LinkClosed, ModelNotFound
from mesh.ids import Address, ModelId, PeerId
from mesh.messages import Health
from mesh.net.dialer import Dialer
from mesh.node import Node
from tests.runtime.room import peer

ONE, OTHER = ModelId("ab" * 32), ModelId("cd" * 32)


class Member:
    """As a view shows it."""

    def __init__(self, number: int) -> None:
        self.peer = peer(number)
        self.name = f"device{number}"
        self.address = Address("127.0.0.1", 1)
        self.health = Health.ALIVE
        self.is_here = True


class FakeNode:
    """Device 0 asks; the others answer from a table by topic."""

    def __init__(self, answers: dict[int, Any]) -> None:
        self._answers = {peer(number): answer for number, answer in answers.items()}
        self.view = self
        self.me = peer(0)
        self.alive = [Member(number) for number in (0, *answers)]

    def find(self, wanted: PeerId) -> Member:
        return next(member for member in self.alive if member.peer == wanted)

    async def request(self, whom: PeerId, topic: str, body: Any, timeout_s: float) -> Any:
        assert topic in (FIND_MODEL, HAVE_MODEL)
        answer = self._answers[whom]
        if isinstance(answer, Exception):
            raise answer
        return to_plain(answer)


def fetcher(tmp_path: Path, answers: dict[int, Any]) -> tuple[Fetcher, Timeline]:
    timeline = Timeline()
    node = cast(Node, FakeNode(answers))
    return Fetcher(node, cast(Dialer, None), Shelf(tmp_path / "models"), timeline), timeline


def found(model: ModelId | None, whole: bool = True) -> FindReply:
    reference = None if model is None else ModelRef(model, "house", "")
    return FindReply(reference, is_whole=whole, pull=Pull.NONE)


def have(manifest: int, whole: bool = True) -> HaveReply:
    runs = ((0, 5),)
    return HaveReply(
        "house", "", bytes([manifest]) * 32, 100, is_whole=whole, runs=runs, pending=False
    )


async def test_a_name_means_what_most_devices_have_whole(tmp_path: Path) -> None:
    answers = {1: found(ONE), 2: found(OTHER), 3: found(ONE), 4: found(None), 5: LinkClosed("gone")}
    asking, _ = fetcher(tmp_path, answers)
    reference = await asking.find("house")
    assert reference is not None
    assert reference.model == ONE
    asking, _ = fetcher(tmp_path, {1: found(OTHER, whole=False), 2: found(ONE)})
    reference = await asking.find("house")
    assert reference is not None
    assert reference.model == ONE


async def test_a_name_that_nobody_knows_is_nothing(tmp_path: Path) -> None:
    asking, _ = fetcher(tmp_path, {1: found(None), 2: LinkClosed("gone")})
    assert await asking.find("house") is None


async def test_a_copy_that_differs_from_the_others_is_named_and_not_used(tmp_path: Path) -> None:
    """As when a disk has changed a bit before anybody hashed the file."""
    asking, timeline = fetcher(tmp_path, {1: have(1), 2: have(2), 3: have(1), 4: NOTHING})
    holders = await asking._holders(ONE)
    assert [holder.name for holder in holders] == ["device1", "device2", "device3"]
    assert [holder.name for holder in asking._best(holders, "house")] == ["device1", "device3"]
    (trouble,) = timeline.since(0)
    assert "device2 differs" in trouble.text


async def test_a_part_has_no_vote(tmp_path: Path) -> None:
    asking, _ = fetcher(tmp_path, {1: have(2, whole=False), 2: have(2, whole=False), 3: have(1)})
    holders = await asking._holders(ONE)
    assert [holder.name for holder in asking._best(holders, "house")] == ["device3"]


async def test_a_model_that_nobody_has_is_said_so(tmp_path: Path) -> None:
    asking, _ = fetcher(tmp_path, {1: NOTHING, 2: ["nonsense"]})
    with pytest.raises(ModelNotFound, match="no device here has house"):
        await asking.partial_of(ModelRef(ONE, "house", ""))
