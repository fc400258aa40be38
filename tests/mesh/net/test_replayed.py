"""Test 21: what was recorded on the wire, or said by a member before, has no effect again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mesh.core import Core
from mesh.errors import LinkClosed, PairingFailed, ProtocolError, RotationRefused
from mesh.identity import Identity
from mesh.ids import Address, Epoch, PeerId
from mesh.limits import DEFAULT_PORT
from mesh.messages import Beat, Hello, Lead, Vote, Yield
from mesh.net.pairing_door import PairingDoor
from mesh.net.pairing_talk import PAIRING_VERSION, Handover
from mesh.net.receive_stream import ReceiveStream
from mesh.net.rekey import ask_peer
from mesh.net.send_stream import SendCounts, SendStream
from mesh.pairing_window import PairingWindow
from mesh.rotation import offer_of
from mesh.spake import Exchange, Role
from mesh.state_store import MemoryStore
from mesh.tensor_frame import encode_header
from mesh.trust import MeshSecret
from tests.mesh.home import LOOPBACK, device, header, link_up
from tests.mesh.net.members import members, until
from tests.mesh.net.test_pairing_door import talk_to

SECRET = MeshSecret.new()
FRAMES = 5


@dataclass
class Wire:
    """One connection through the recorder."""

    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)
    to_server: asyncio.StreamWriter | None = None
    to_client: asyncio.StreamWriter | None = None


class Recorder:
    """A cable to `target` with somebody on it who keeps what passes, and can send it again."""

    def __init__(self, target: Address) -> None:
        self.wires: list[Wire] = []
        self._target = target

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._carry, LOOPBACK, 0)
        try:
            yield Address(LOOPBACK, server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for wire in self.wires:
                for writer in (wire.to_server, wire.to_client):
                    if writer is not None:
                        writer.transport.abort()
            await server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, there = await asyncio.open_connection(self._target.host, self._target.port)
        wire = Wire(to_server=there, to_client=writer)
        self.wires.append(wire)

        async def pump(
            source: asyncio.StreamReader, to: asyncio.StreamWriter, kept: bytearray
        ) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    kept += data
                    to.write(data)
                    await to.drain()
            to.transport.abort()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, there, wire.asked))
            tasks.create_task(pump(answers, writer, wire.answered))


async def send_all_again(address: Address, recorded: bytes) -> bytes:
    """A new connection that begins with exactly what another one said; the answer, to its end."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    answer = b""
    with contextlib.suppress(OSError):
        writer.write(recorded)
        await writer.drain()
        while data := await reader.read(1 << 16):
            answer += data
    writer.transport.abort()
    return answer


async def test_recorded_control_messages_on_the_same_link_end_it_and_are_not_heard() -> None:
    """Test 21: control, same link."""
    async with device(SECRET) as one, device(SECRET) as two:
        recorder = Recorder(two.address)
        async with recorder.running() as address:
            dialled = await one.transport.dial(address)
            await two.until(lambda: len(two.accepted) == 1)
            before = len(recorder.wires[0].asked)
            for number in range(5):
                await dialled.send(b"vote %d" % number)
            heard = [await two.accepted[0].receive() for _ in range(5)]
            wire = recorder.wires[0]
            assert wire.to_server is not None
            wire.to_server.write(bytes(wire.asked[before:]))
            with pytest.raises(LinkClosed):
                heard.append(await two.accepted[0].receive())
            assert heard == [b"vote %d" % number for number in range(5)]


async def test_a_recorded_control_link_opens_no_new_one() -> None:
    """Test 21: control, new link: the whole recording, from the first byte."""
    async with device(SECRET) as one, device(SECRET) as two:
        recorder = Recorder(two.address)
        async with recorder.running() as address:
            dialled = await one.transport.dial(address)
            await dialled.send(b"vote")
            await two.until(lambda: len(two.accepted) == 1)
            assert await two.accepted[0].receive() == b"vote"
            await send_all_again(two.address, bytes(recorder.wires[0].asked))
            await two.until(lambda: bool(two.refused))
            assert len(two.accepted) == 1


async def test_recorded_frames_on_the_same_link_cost_it_and_arrive_once() -> None:
    """Test 21: tensors, same link: it breaks, comes again, and nothing is lost or repeated."""
    async with device(SECRET) as one, device(SECRET) as two:
        recorder = Recorder(one.address)
        async with recorder.running() as address:
            await link_up(one, two, address)
            for number in range(FRAMES):
                await one.links.send(two.peer, header(8, number), memoryview(bytes(8)))
            await two.until(lambda: len(two.frames) == FRAMES)
            wire = recorder.wires[0]
            assert wire.to_client is not None
            wire.to_client.write(bytes(wire.answered))
            await two.until(lambda: bool(two.broken))
            for number in range(FRAMES, 2 * FRAMES):
                await one.links.send(two.peer, header(8, number), memoryview(bytes(8)))
            await two.until(lambda: len(two.frames) == 2 * FRAMES)
            assert [frame.position for _, frame, _ in two.frames] == list(range(2 * FRAMES))


async def test_a_recorded_tensor_link_opens_no_new_one() -> None:
    """Test 21: tensors, new link: neither as the one that dials, nor as the one that answers."""
    async with device(SECRET) as one, device(SECRET) as two:
        recorder = Recorder(one.address)
        async with recorder.running() as address:
            await link_up(one, two, address)
            await one.links.send(two.peer, header(8, 0), memoryview(bytes(8)))
            await two.until(lambda: len(two.frames) == 1)
            wire = recorder.wires[0]
            sent = one.links.stats(two.peer).sent_frames
            await send_all_again(one.address, bytes(wire.asked))
            await one.until(lambda: bool(one.refused))
            assert one.links.stats(two.peer).sent_frames == sent

            async def parrot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(bytes(wire.answered))
                with contextlib.suppress(OSError):
                    await reader.read()
                writer.close()

            server = await asyncio.start_server(parrot, LOOPBACK, 0)
            await two.links.connect(one.peer, Address(LOOPBACK, server.sockets[0].getsockname()[1]))
            await asyncio.sleep(0.2)
            server.close()
            assert len(two.frames) == 1


def test_frames_that_a_sender_repeats_are_dropped_on_the_same_and_on_a_new_link() -> None:
    """Test 21: below TLS nobody but the sender itself could; the numbers are a second lock."""
    sender = SendStream(PeerId("ab" * 32), SendCounts())
    receiver = ReceiveStream()
    start = sender._id + bytes(8)
    messages = [
        number.to_bytes(8, "little") + encode_header(header(4, number)) + bytes(4)
        for number in range(3)
    ]
    receiver.start(start)
    for message in messages:
        assert receiver.take(message) is not None
        receiver.done(len(message), 0.0)
    for _ in range(2):
        assert [receiver.take(message) for message in messages] == [None, None, None]
        receiver.start(start)  # a new link of the same stream, from its beginning
    assert receiver.duplicate_frames == 6
    assert receiver.received_frames == 3
    with pytest.raises(ProtocolError):
        receiver.take((7).to_bytes(8, "little") + messages[0][8:])


def test_messages_of_the_mesh_that_are_said_again_change_nothing() -> None:
    """Test 21: a member's beats, votes and leads of before, on the same and on a new link."""
    me, you = PeerId("a" * 64), PeerId("b" * 64)
    there = Address("10.0.0.2", DEFAULT_PORT)
    core = Core(me, "me", MemoryStore(), lambda: 0.5, 0.5)
    core.start(0.0, Address("10.0.0.1", DEFAULT_PORT))
    hello = Hello(1, you, "you", 2, 2, there, None, ())
    beats = [
        Beat(number, 2, Epoch(number, you), True, True, None, 2, 0.0, False, True, ())
        for number in range(1, 6)
    ]
    core.take_hello(hello, there, 0.0)
    for number, beat in enumerate(beats):
        core.take_beat(hello, there, beat, 0.1 * number)
    core.take_leave(you, 1, 0.6)  # of an earlier run of it
    before = core.view
    assert before.is_here(you)
    assert before.epoch == Epoch(5, you)
    core.take_effects()
    for link in (hello, replace(hello)):
        core.take_hello(link, there, 0.7)
        for beat in beats[:-1]:
            core.take_beat(link, there, beat, 0.7)
        core.take_lead(you, Lead(Epoch(3, you)), 0.7)
        core.take_vote(you, Vote(3, True, True, 3, "yes"), 0.7)
        core.take_yield(you, Yield(Epoch(3, you)), 0.7)
        core.take_leave(you, 1, 0.7)
        core.take_hello(replace(hello, incarnation=1, started_as=1), there, 0.7)
    assert core.view == before


async def test_an_old_secret_offered_again_is_refused(tmp_path: Path) -> None:
    """Test 21: the message that brought secret number 2, when number 3 is in force."""
    async with members(tmp_path, "kitchen", "den") as (kitchen, den):
        await kitchen.rotator.rotate()
        offer = offer_of(kitchen.credentials.keyring, in_force=True)
        await until(lambda: kitchen.linked(den) and den.linked(kitchen))
        await kitchen.rotator.rotate()
        with pytest.raises(RotationRefused, match="number 3 already"):
            await ask_peer(kitchen.dialer, den.address, den.peer, offer)
        assert den.generation == 3
        assert den.secret == kitchen.secret


async def test_a_recorded_pairing_opens_no_door() -> None:
    """Test 21: what a newcomer with the right code has said, at a door with the same code."""
    given: list[str] = []

    def give(peer: PeerId, name: str) -> Handover:
        given.append(name)
        return Handover(SECRET.raw, 1, "kitchen", DEFAULT_PORT)

    newcomer, said = Identity.generate(), list[bytes]()
    host = Identity.generate()
    for again in (False, True):
        window = PairingWindow("271828", asyncio.get_running_loop().time())
        door = PairingDoor(host, window, give)
        door.open([LOOPBACK], 0)
        running = asyncio.ensure_future(door.run())
        talk = await talk_to(door.addresses[0], newcomer)
        if again:
            await talk.send(said[0])
            await talk.receive()
            await talk.send(said[1])
            with pytest.raises(PairingFailed, match="codes differ"):
                await talk.receive()
        else:
            exchange = Exchange(Role.NEWCOMER, "271828", newcomer=newcomer.peer, member=talk.peer)
            said.append(bytes([PAIRING_VERSION]) + exchange.message)
            await talk.send(said[0])
            exchange.take(await talk.receive())
            said.append(exchange.confirmation)
            await talk.send(said[1])
            exchange.confirm(await talk.receive())
            await talk.send(exchange.seal(b"den"))
            assert SECRET.raw in exchange.unseal(await talk.receive())
        talk.close()
        door.shut("the test is over")
        await running
    assert given == ["den"]
