"""Transfers over real links: sources that lie, stall, vanish or have a part; disks that fill up."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from apps.models import patience as patience_module
from apps.models import source as source_module
from apps.models import transfer as transfer_module
from apps.models.messages import HaveReply
from apps.models.source import Kind, fetch_manifest
from apps.models.transfer import Holder, Transfer
from apps.timeline import Timeline
from mesh.errors import DiskFull, NowhereHere, ProtocolError, WeightsMissing
from mesh.ids import ModelId, PeerId
from mesh.limits import MAX_DAMAGED_PIECES, MAX_PIECE_BYTES
from mesh.net.piece_links import PieceRequest, PieceServer
from mesh.trust import MeshSecret
from runtime.stored import partial as partial_module
from runtime.stored.layout import ByteRange, FileSize, Layout
from runtime.stored.manifest import Manifest, make_manifest
from runtime.stored.partial import About, PartialModel
from tests.mesh.home import DEADLINE_S, Device, device

SECRET = MeshSecret.new()
PIECES = 24

Give = Callable[[int, bytes], bytes]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as suits a test."""
    monkeypatch.setattr(source_module, "PIECE_STALL_S", 0.3)
    monkeypatch.setattr(transfer_module, "LOOK_INTERVAL_S", 0.1)
    monkeypatch.setattr(patience_module, "PATIENCE_S", 1.0)
    monkeypatch.setattr(patience_module, "NOWHERE_S", 0.5)
    monkeypatch.setattr(transfer_module, "ASIDE_S", 0.2)


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom((PIECES - 1) * MAX_PIECE_BYTES + 1234)


@pytest.fixture(scope="module")
def manifest(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    path = tmp_path_factory.mktemp("source") / "model.gguf"
    path.write_bytes(data)
    layout = Layout((FileSize("model.gguf", len(data)),), (), (ByteRange(0, 10),))
    return make_manifest(ModelId("ab" * 32), layout, [path])


class Giver:
    """A member that has pieces, and what it does with each before it gives it."""

    def __init__(self, manifest: Manifest, data: bytes, name: str) -> None:
        self.manifest, self.data, self.name = manifest, data, name
        self.given: Counter[int] = Counter()
        self.runs: tuple[tuple[int, int], ...] = ((0, len(manifest)),)
        self.give: Give = lambda index, piece: piece
        self.is_here = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.device: Device | None = None

    async def read(self, peer: PeerId, request: PieceRequest) -> bytes:
        await self.gate.wait()
        if request.kind == Kind.MANIFEST:
            start = request.number * MAX_PIECE_BYTES
            return self.manifest.encode()[start : start + MAX_PIECE_BYTES]
        if not any(first <= request.number < last for first, last in self.runs):
            raise WeightsMissing("not here")
        piece = self.manifest.piece(request.number)
        found = self.data[piece.offset : piece.offset + piece.size_bytes]
        self.given[request.number] += 1
        return self.give(request.number, found)

    @property
    def holder(self) -> Holder:
        assert self.device is not None
        have = HaveReply(
            self.name, "", self.manifest.id, 0, is_whole=False, runs=self.runs, pending=False
        )
        return Holder(self.device.peer, self.name, self.device.address, have)


class Room:
    """Givers, and one that lacks everything."""

    def __init__(self, manifest: Manifest, data: bytes, folder: Path) -> None:
        self.manifest, self.data, self.folder = manifest, data, folder
        self.timeline = Timeline()
        self.givers: list[Giver] = []
        self.looks = 0
        self._stack = AsyncExitStack()
        self._receiver: Device | None = None

    async def __aenter__(self) -> Room:
        self._receiver = await self._stack.enter_async_context(device(SECRET))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def giver(self, name: str) -> Giver:
        giver = Giver(self.manifest, self.data, name)
        giver.device = await self._stack.enter_async_context(device(SECRET))
        PieceServer(giver.device.server, giver.read, admit=lambda peer: True)
        self.givers.append(giver)
        return giver

    def partial(self) -> PartialModel:
        if (self.folder / "manifest").exists():
            return PartialModel.open(self.folder)
        return PartialModel.create(self.folder, self.manifest, About("house"))

    def transfer(self, partial: PartialModel) -> Transfer:
        assert self._receiver is not None

        async def look() -> list[Holder]:
            self.looks += 1
            return [giver.holder for giver in self.givers if giver.is_here]

        return Transfer(partial, look, self._receiver.dialer, self.timeline)

    def noted(self, kind: str) -> list[str]:
        return [event.text for event in self.timeline.since(0) if event.kind == kind]

    def content(self) -> bytes:
        return (self.folder / "files/model.gguf").read_bytes()


@pytest.fixture
async def room(manifest: Manifest, data: bytes, tmp_path: Path) -> AsyncIterator[Room]:
    async with Room(manifest, data, tmp_path / "partial") as room:
        yield room


async def test_several_sources_bring_each_piece_once(room: Room) -> None:
    one, two = await room.giver("one"), await room.giver("two")
    partial = room.partial()
    await room.transfer(partial).bring(range(PIECES))
    assert room.content() == room.data
    assert one.given + two.given == Counter(dict.fromkeys(range(PIECES), 1))
    assert one.given
    assert two.given


async def test_only_what_is_wanted_is_sent(room: Room) -> None:
    one = await room.giver("one")
    partial = room.partial()
    await room.transfer(partial).bring([3, 4, 9])
    assert set(one.given) == {3, 4, 9}
    assert partial.runs() == [(3, 5), (9, 10)]


async def test_a_damaged_piece_comes_from_another_and_its_source_is_named(room: Room) -> None:
    bad, good = await room.giver("attic"), await room.giver("kitchen")
    bad.give = lambda index, piece: bytes([piece[0] ^ 1]) + piece[1:]
    good.gate.clear()
    transfer = room.transfer(room.partial())
    bringing = asyncio.ensure_future(transfer.bring(range(PIECES)))
    while not room.noted("damaged-piece"):
        await asyncio.sleep(0.01)
    good.gate.set()
    await bringing
    assert room.content() == room.data
    assert all("attic" in text for text in room.noted("damaged-piece"))
    assert max(bad.given.values()) == 1, "a damaged piece was asked for again where it came from"
    assert len(room.noted("damaged-piece")) <= MAX_DAMAGED_PIECES
    assert "attic gives damaged pieces" in "".join(room.noted("source-lost"))


WRONG = {
    "one bit": lambda index, piece, all_: piece[:9] + bytes([piece[9] ^ 64]) + piece[10:],
    "truncated": lambda index, piece, all_: piece[:-1],
    "shifted": lambda index, piece, all_: b"\0" + piece[:-1],
    "nothing": lambda index, piece, all_: b"",
    "zeros": lambda index, piece, all_: bytes(len(piece)),
    "the next layer's": lambda index, piece, all_: all_[(index + 1) % PIECES],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_whatever_is_wrong_with_a_piece_it_is_never_used_and_comes_from_another(
    room: Room, wrong: Callable[[int, bytes, list[bytes]], bytes]
) -> None:
    """Reliability test 23: and it is not offered to anybody before it is right."""
    bad, good = await room.giver("attic"), await room.giver("kitchen")
    starts = room.manifest.starts
    all_ = [room.data[starts[n] : starts[n + 1]] for n in range(PIECES)]
    bad.give = lambda index, piece: wrong(index, piece, all_)
    good.gate.clear()
    partial = room.partial()
    bringing = asyncio.ensure_future(room.transfer(partial).bring(range(PIECES)))
    while not room.noted("source-lost"):
        await asyncio.sleep(0.01)
    assert not partial.runs(), "a wrong piece counts, and would be given on"
    good.gate.set()
    await bringing
    assert room.content() == room.data
    assert "attic gives damaged pieces" in "".join(room.noted("source-lost"))


async def test_one_damaged_piece_does_not_end_a_source(room: Room) -> None:
    bad, good = await room.giver("attic"), await room.giver("kitchen")
    bad.give = lambda index, piece: piece[::-1] if index == 0 else piece
    good.runs = ((0, 1),)
    await room.transfer(room.partial()).bring(range(PIECES))
    assert room.content() == room.data
    assert set(bad.given) >= set(range(1, PIECES))


async def test_with_only_a_damaged_source_the_error_names_it(room: Room) -> None:
    bad = await room.giver("attic")
    bad.give = lambda index, piece: piece[::-1] if index == 5 else piece
    partial = room.partial()
    with pytest.raises(WeightsMissing, match="damaged pieces came from attic"):
        await room.transfer(partial).bring(range(PIECES))
    assert partial.missing(range(PIECES)) == [5], "what was right is kept"


async def test_a_source_that_vanishes_gives_its_pieces_to_the_others(room: Room) -> None:
    """Reliability test 23."""
    one, _ = await room.giver("one"), await room.giver("two")

    def vanish(index: int, piece: bytes) -> bytes:
        if one.given.total() == 3:
            one.is_here = False
            raise ConnectionResetError  # the server's task ends, and its link with it
        return piece

    one.give = vanish
    await room.transfer(room.partial()).bring(range(PIECES))
    assert room.content() == room.data


async def test_the_last_piece_of_a_source_that_vanished_counts(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver = await room.giver("one")
    loop, gone, add = asyncio.get_running_loop(), threading.Event(), PartialModel.add
    given: list[int] = []

    def slowly(self: PartialModel, index: int, data: bytes | memoryview) -> None:
        assert gone.wait(DEADLINE_S)
        add(self, index, data)

    def vanish(index: int, piece: bytes) -> bytes:
        given.append(index)
        if len(given) == 1:
            return piece
        giver.is_here = False
        loop.call_later(0.05, gone.set)  # the broken link is seen before that
        raise ConnectionResetError

    monkeypatch.setattr(PartialModel, "add", slowly)
    giver.give = vanish
    transfer = room.transfer(room.partial())
    bringing = [asyncio.ensure_future(transfer.bring([index])) for index in (0, 1)]
    await asyncio.wait(bringing)
    bringing[given[0]].result()
    with pytest.raises(WeightsMissing):
        bringing[given[1]].result()


async def test_a_source_that_stalls_is_not_waited_for(room: Room) -> None:
    one, _ = await room.giver("one"), await room.giver("two")
    one.gate.clear()
    await room.transfer(room.partial()).bring(range(PIECES))
    assert room.content() == room.data
    assert "gave nothing for" in "".join(room.noted("source-lost"))
    one.gate.set()


async def test_a_device_with_a_part_is_a_source_too(room: Room) -> None:
    one, two = await room.giver("one"), await room.giver("two")
    one.runs, two.runs = ((0, 10),), ((10, PIECES),)
    await room.transfer(room.partial()).bring(range(PIECES))
    assert set(one.given) == set(range(10))
    assert set(two.given) == set(range(10, PIECES))


async def test_a_source_that_comes_later_ends_the_wait(room: Room) -> None:
    bringing = asyncio.ensure_future(room.transfer(room.partial()).bring([1, 2]))
    while room.looks < 3:
        await asyncio.sleep(0.01)
    await room.giver("late")
    await bringing


async def test_what_no_device_has_is_said_and_the_rest_kept(room: Room) -> None:
    one = await room.giver("one")
    one.runs = ((0, 4),)
    partial = room.partial()
    with pytest.raises(NowhereHere, match=r"0\.3 MB of house.*What has come is kept") as caught:
        await room.transfer(partial).bring(range(5))
    assert caught.value.pieces == {4}
    assert partial.runs() == [(0, 4)]


async def test_a_source_that_gives_nothing_is_not_nowhere(room: Room) -> None:
    """It has the piece, so it is waited for, as long as for any other that stands still."""
    one = await room.giver("one")
    one.gate.clear()
    with pytest.raises(WeightsMissing) as caught:
        await room.transfer(room.partial()).bring([3])
    assert not isinstance(caught.value, NowhereHere)
    one.gate.set()


async def test_a_restart_goes_on_where_it_was(room: Room) -> None:
    one = await room.giver("one")
    first = room.transfer(room.partial())
    bringing = asyncio.ensure_future(first.bring(range(PIECES)))
    while one.given.total() < 6:
        await asyncio.sleep(0)
    one.gate.clear()
    await asyncio.sleep(0.05)
    bringing.cancel()  # as the end of the process does
    await asyncio.wait([bringing])
    await first.close()
    one.gate.set()
    again = room.partial()
    missing = again.missing(range(PIECES))
    assert len(missing) <= PIECES - 3
    one.given.clear()
    await room.transfer(again).bring(range(PIECES))
    assert room.content() == room.data
    assert set(one.given) == set(missing)


async def test_a_disk_that_fills_up_keeps_the_rest_and_goes_on_later(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await room.giver("one")
    real, written = os.pwrite, 0

    def nearly_full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += 1
        if written > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(partial_module.os, "pwrite", nearly_full)
    partial = room.partial()
    transfer = room.transfer(partial)
    with pytest.raises(DiskFull, match="what has come is kept"):
        await transfer.bring(range(PIECES))
    assert len(partial.missing(range(PIECES))) == PIECES - 10
    assert not partial.is_whole
    monkeypatch.setattr(partial_module.os, "pwrite", real)
    one.given.clear()
    await transfer.bring(range(PIECES))
    assert room.content() == room.data
    assert one.given.total() == PIECES - 10


async def test_a_share_overtakes_the_rest_of_a_pull(room: Room) -> None:
    one = await room.giver("one")
    order: list[int] = []
    one.give = lambda index, piece: order.append(index) or piece
    transfer = room.transfer(room.partial())
    whole = asyncio.ensure_future(transfer.bring(range(PIECES)))
    while not order:
        await asyncio.sleep(0)
    await transfer.bring([PIECES - 2, PIECES - 1])
    assert not whole.done()
    await whole
    assert order.index(PIECES - 1) < PIECES - 3
    assert sorted(order) == list(range(PIECES))


async def test_two_that_want_the_same_get_it_once(room: Room) -> None:
    one = await room.giver("one")
    transfer = room.transfer(room.partial())
    await asyncio.gather(*(transfer.bring(range(n, PIECES - n)) for n in (0, 5, 0, 10)))
    assert one.given == Counter(dict.fromkeys(range(PIECES), 1))


async def test_a_wait_that_is_given_up_asks_for_nothing_more(room: Room) -> None:
    one = await room.giver("one")
    transfer = room.transfer(room.partial())
    one.gate.clear()
    whole = asyncio.ensure_future(transfer.bring(range(PIECES)))
    await asyncio.sleep(0.1)
    whole.cancel()
    await asyncio.wait([whole])
    assert transfer.state is None
    one.gate.set()
    await asyncio.sleep(0.2)
    assert one.given.total() < PIECES


async def test_progress_is_told_while_it_lasts(room: Room) -> None:
    one = await room.giver("one")
    transfer = room.transfer(room.partial())
    whole = asyncio.ensure_future(transfer.bring(range(PIECES)))
    while one.given.total() < 10:
        await asyncio.sleep(0)
    state = transfer.state
    assert state is not None
    assert state.name == "house"
    assert 0 < state.done_bytes < state.wanted_bytes == len(room.data)
    await whole
    assert transfer.state is None
    assert transfer.given["one"] == len(room.data)


async def test_a_manifest_that_is_another_is_refused(room: Room) -> None:
    """Reliability test 23."""
    one = await room.giver("one")
    assert room._receiver is not None
    assert one.device is not None
    where = (room._receiver.dialer, one.device.address, one.device.peer)
    size = room.manifest.encoded_bytes
    assert (await fetch_manifest(*where, room.manifest.id, size)).id == room.manifest.id
    with pytest.raises(ProtocolError, match="another manifest"):
        await fetch_manifest(*where, bytes(32), size)
    with pytest.raises(ProtocolError):
        await fetch_manifest(*where, room.manifest.id, 1 << 40)
