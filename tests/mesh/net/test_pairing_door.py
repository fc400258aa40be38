"""Pairing over real TLS on loopback: who gets the secret, and what a stranger gets instead."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from mesh.errors import ConfigError, DialRefused, NotOfThisMesh, PairingFailed
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.limits import (
    MAX_PAIRING_MESSAGE_BYTES,
    MAX_UNKNOWN_SOCKETS,
    PAIRING_TRIES,
)
from mesh.net import pairing_talk
from mesh.net.pairing_door import PairingDoor, call_at_door
from mesh.net.pairing_talk import PAIRING_VERSION, Handover, Talk
from mesh.pairing_window import PairingWindow
from mesh.spake import CONFIRMATION_BYTES, SPAKE_BYTES, Exchange, Role
from mesh.trust import MeshSecret, MeshTrust, pairing_trust
from tests.mesh.home import LOOPBACK, Relay, device

CODE = "271828"
SECRET = MeshSecret.new()


@dataclass
class Host:
    """A member whose door is open, and what came of it."""

    identity: Identity
    door: PairingDoor
    running: asyncio.Task[str]
    given: list[tuple[PeerId, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return self.door.addresses[0]

    @property
    def window(self) -> PairingWindow:
        return self.door.window


@contextlib.asynccontextmanager
async def host(**options: float) -> AsyncIterator[Host]:
    identity = Identity.generate()
    here: Host

    def give(peer: PeerId, name: str) -> Handover:
        here.given.append((peer, name))
        return Handover(SECRET.raw, 3, "kitchen", 8478)

    window = PairingWindow(CODE, asyncio.get_running_loop().time())
    door = PairingDoor(
        identity,
        window,
        give,
        on_refused=lambda host, reason: here.refused.append(reason),
        **options,
    )
    door.open([LOOPBACK], 0)
    here = Host(identity, door, asyncio.ensure_future(door.run()))
    try:
        yield here
    finally:
        door.shut("the test is over")
        await here.running


async def call(address: Address, code: str = CODE) -> Handover:
    return (await call_at_door(Identity.generate(), address, code, "den"))[1]


async def talk_to(address: Address, identity: Identity) -> Talk:
    trust = pairing_trust(identity)
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=trust.client_context, server_hostname=""
    )
    return Talk(reader, writer, trust.peer_of(writer.get_extra_info("ssl_object")))


async def test_six_digits_bring_the_secret_and_close_the_door() -> None:
    """Test 20: the right code, once."""
    async with host() as here:
        newcomer = Identity.generate()
        peer, handover = await call_at_door(newcomer, here.address, CODE, "den")
        assert peer == here.identity.peer
        assert handover == Handover(SECRET.raw, 3, "kitchen", 8478)
        assert here.given == [(newcomer.peer, "den")]
        assert "let a device in" in await here.running
        with pytest.raises(DialRefused, match="potluck invite"):
            await call(here.address)


async def test_three_wrong_codes_lock_the_door_for_the_right_one_too() -> None:
    """Test 20: wrong code 3x, no key, locked."""
    async with host() as here:
        for left in ("2 more tries", "1 more try", "no more tries"):
            with pytest.raises(PairingFailed, match=f"codes differ.*{left}"):
                await call(here.address, "000000")
        assert "locked" in await here.running
        with pytest.raises(DialRefused):
            await call(here.address)
        assert not here.given


async def test_hanging_up_in_the_middle_is_a_try_as_well() -> None:
    """Test 20: else whoever breaks off before its confirmation could try for ever."""
    async with host() as here:
        for _ in range(PAIRING_TRIES):
            me = Identity.generate()
            talk = await talk_to(here.address, me)
            exchange = Exchange(Role.NEWCOMER, "000000", newcomer=me.peer, member=talk.peer)
            await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
            await talk.receive()
            talk.close()
        assert "locked" in await here.running


@pytest.mark.parametrize("what", ["message", "confirmation"])
async def test_a_reflected_message_opens_nothing(what: str) -> None:
    """Test 20: a stranger who answers with what the member itself has said."""
    async with host() as here:
        me = Identity.generate()
        talk = await talk_to(here.address, me)
        if what == "message":  # it has to speak first, so it brings the mark of the other side
            exchange = Exchange(Role.MEMBER, CODE, newcomer=me.peer, member=talk.peer)
            await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
        else:
            exchange = Exchange(Role.NEWCOMER, CODE, newcomer=me.peer, member=talk.peer)
            await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
            await talk.send((await talk.receive())[:CONFIRMATION_BYTES])
        with pytest.raises(PairingFailed):
            await talk.receive()
        talk.close()
        assert not here.given
        assert here.window.tries_left == PAIRING_TRIES - 1


class Middle:
    """Ends the TLS of both with a key of its own, and reads all that goes between them."""

    def __init__(self, target: Address) -> None:
        self.identity = Identity.generate()
        self.read = bytearray()
        self._target = target

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Address]:
        context = pairing_trust(self.identity).server_context
        server = await asyncio.start_server(self._between, LOOPBACK, 0, ssl=context)
        try:
            yield Address(LOOPBACK, server.sockets[0].getsockname()[1])
        finally:
            server.close()
            await server.wait_closed()

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        context = pairing_trust(self.identity).client_context
        answers, there = await asyncio.open_connection(
            self._target.host, self._target.port, ssl=context, server_hostname=""
        )

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 12):
                    self.read += data
                    to.write(data)
                    await to.drain()
            to.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, there))
            tasks.create_task(pump(answers, writer))


async def test_tls_keys_swapped_in_the_middle_are_noticed_before_the_secret() -> None:
    """Test 20: the right code on both sides, and somebody who ends both TLS connections."""
    async with host() as here:
        middle = Middle(here.address)
        async with middle.running() as address:
            with pytest.raises(PairingFailed, match="somebody stands between"):
                await call(address)
        assert not here.given
        assert len(middle.read) > 2 * SPAKE_BYTES, "it did read what was said"
        assert SECRET.raw not in middle.read
        # Nothing was said but two SPAKE2 messages, one confirmation, and why not.
        assert len(middle.read) < 2 * SPAKE_BYTES + CONFIRMATION_BYTES + 16 + 120


async def test_somebody_who_only_carries_the_bytes_is_no_harm() -> None:
    """Test 20: the same place in the middle, without the keys: the pairing works."""
    async with host() as here:
        relay = Relay(here.address)
        async with relay.running() as address:
            assert (await call(address)).secret == SECRET.raw


async def test_no_byte_of_the_secret_leaves_before_both_have_confirmed() -> None:
    """Test 20: step by step, what a newcomer that knows the code has received."""
    async with host() as here:
        me = Identity.generate()
        talk = await talk_to(here.address, me)
        exchange = Exchange(Role.NEWCOMER, CODE, newcomer=me.peer, member=talk.peer)
        await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
        first = await talk.receive()
        assert len(first) == SPAKE_BYTES
        exchange.take(first)
        await talk.send(exchange.confirmation)
        second = await talk.receive()
        assert len(second) == CONFIRMATION_BYTES
        assert not here.given, "the member has confirmed, this side has not yet said that it saw it"
        silent = asyncio.ensure_future(talk.receive())
        await asyncio.sleep(0.05)
        assert not silent.done()
        exchange.confirm(second)
        await talk.send(exchange.seal(b"den"))
        sealed = await silent
        assert SECRET.raw not in first + second + sealed
        assert SECRET.raw in exchange.unseal(sealed)
        talk.close()


async def test_two_at_once_are_one_and_a_refusal() -> None:
    """Test 20: two newcomers, both with the right code."""
    async with host() as here:
        me = Identity.generate()
        first = await talk_to(here.address, me)
        exchange = Exchange(Role.NEWCOMER, CODE, newcomer=me.peer, member=first.peer)
        await first.send(bytes([PAIRING_VERSION]) + exchange.message)
        exchange.take(await first.receive())
        with pytest.raises(PairingFailed, match="another device is being let in"):
            await call(here.address)
        assert here.window.tries_left == PAIRING_TRIES - 1
        await first.send(exchange.confirmation)
        exchange.confirm(await first.receive())
        with pytest.raises(PairingFailed, match="good for one"):
            await call(here.address)  # closed, and the first is still being let in
        await first.send(exchange.seal(b"den"))
        assert SECRET.raw in exchange.unseal(await first.receive())
        first.close()
        await here.running
        assert len(here.given) == 1


async def test_the_time_of_the_window_shuts_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test 20: window over, and nobody came."""
    monkeypatch.setattr("mesh.pairing_window.PAIRING_WINDOW_S", 0.05)
    async with host() as here:
        assert "over" in await here.running
        with pytest.raises(DialRefused):
            await call(here.address)


async def test_the_door_shuts_when_the_window_is_over() -> None:
    """Test 20: window over; also for a newcomer in the middle of it."""
    async with host() as here:
        me = Identity.generate()
        talk = await talk_to(here.address, me)
        exchange = Exchange(Role.NEWCOMER, CODE, newcomer=me.peer, member=talk.peer)
        await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
        await talk.receive()  # so the member is in the middle of it as well
        here.door.expire()  # as its clock does
        assert "over" in await here.running
        with pytest.raises(PairingFailed, match="hung up"):
            await talk.receive()
        with pytest.raises(DialRefused):
            await call(here.address)
        assert not here.given


async def test_a_silent_newcomer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_talk, "PAIRING_EXCHANGE_S", 0.1)
    async with host() as here:
        me = Identity.generate()
        talk = await talk_to(here.address, me)
        exchange = Exchange(Role.NEWCOMER, CODE, newcomer=me.peer, member=talk.peer)
        await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
        await talk.receive()
        with pytest.raises(PairingFailed, match="hung up"):
            await talk.receive()
        assert (await call(here.address)).generation == 3


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0",
        b"\xff\xff" + bytes(100),
        (MAX_PAIRING_MESSAGE_BYTES + 1).to_bytes(2, "big"),
        b"\0\2\0\x09",
        b"\0\x23\0\1" + bytes(SPAKE_BYTES),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=str,
)
async def test_garbage_is_refused_and_the_door_goes_on(said: bytes) -> None:
    async with host() as here:
        talk = await talk_to(here.address, Identity.generate())
        talk._writer.write(said)
        if not said:
            talk.close()
        else:
            with pytest.raises(PairingFailed):
                await talk.receive()
            talk.close()
        assert (await call(here.address)).generation == 3


async def test_nothing_but_pairing_is_behind_the_door_and_no_pairing_at_the_meshs() -> None:
    async with host() as here, device(SECRET) as member:
        with pytest.raises(NotOfThisMesh):
            await member.transport.dial(here.address)
        with pytest.raises(PairingFailed, match="no pairing port"):
            await call(member.address)
        blind = MeshTrust(Identity.generate(), SECRET).client_context  # a member's certificate
        blind.verify_mode = ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            here.address.host, here.address.port, ssl=blind, server_hostname=""
        )
        writer.write(b"GET /v2/control HTTP/1.1\r\n\r\n")
        assert await read_to_end(reader) == b"", "not even an answer in HTTP"
        writer.transport.abort()
        assert not member.accepted


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except OSError:  # reset, or refused by TLS, is as good as closed
        return b""


async def test_silent_sockets_at_the_door_are_few_and_go_again() -> None:
    async with host(handshake_timeout_s=0.2) as here:
        idle = [
            socket.create_connection((here.address.host, here.address.port))
            for _ in range(MAX_UNKNOWN_SOCKETS + 4)
        ]
        while len(here.refused) < 4:
            await asyncio.sleep(0.01)
        assert set(here.refused[:4]) == {"too many connections at the pairing port"}
        while len(here.refused) < MAX_UNKNOWN_SOCKETS + 4:
            await asyncio.sleep(0.01)
        assert (await call(here.address)).generation == 3
        for one in idle:
            one.close()


async def test_what_keeps_the_member_from_giving_is_told() -> None:
    async with host() as here:

        def full(peer: PeerId, name: str) -> Handover:
            raise ConfigError("no space left")

        here.door._give = full
        with pytest.raises(PairingFailed, match="no space left"):
            await call(here.address)


async def test_a_port_that_is_taken_is_another_port() -> None:
    async with host() as here, host() as other:
        third = PairingDoor(Identity.generate(), here.window, lambda peer, name: None)
        third.open([LOOPBACK], other.address.port)
        assert third.addresses[0].port != other.address.port
        third.shut("not needed")
        await third.run()
