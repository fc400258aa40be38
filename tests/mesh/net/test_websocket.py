"""The real transport over loopback: who gets in, who does not, and what each is told."""

import asyncio
import socket
import ssl
import time

import aiohttp
import pytest

from mesh.errors import (
    ConfigError,
    DialRefused,
    DialTimeout,
    LinkClosed,
    LinkError,
    NotOfThisMesh,
    OwnIdentity,
    VersionMismatch,
)
from mesh.identity import Identity
from mesh.ids import Address
from mesh.limits import (
    MAX_CLOSE_REASON_BYTES,
    MAX_CONTROL_BYTES,
    MAX_LINKS_PER_PEER,
    MAX_REQUEST_LINE_BYTES,
    MAX_UNKNOWN_SOCKETS,
    MAX_UNKNOWN_SOCKETS_PER_HOST,
    PROTOCOL_VERSION,
)
from mesh.net.control import ControlTransport
from mesh.net.dialer import Dialer
from mesh.net.server import WebsocketServer
from mesh.net.sockets import Gate
from mesh.net.websocket import BadMessage
from mesh.trust import MeshSecret, MeshTrust
from tests.mesh.home import LOOPBACK, Device, device

SECRET = MeshSecret.new()
OURS = b"GET /v%d/" % PROTOCOL_VERSION


async def linked(one: Device, two: Device):
    """A control channel: the end that dialled, the end that accepted."""
    before = len(two.accepted)
    dialled = await one.transport.dial(two.address)
    await two.until(lambda: len(two.accepted) > before)
    return dialled, two.accepted[-1]


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except OSError:  # reset is as good as closed
        return b""


def anonymous_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def test_both_ends_know_each_other_and_messages_pass_in_order():
    async with device(SECRET) as one, device(SECRET) as two:
        dialled, accepted = await linked(one, two)
        assert (dialled.peer, accepted.peer) == (two.peer, one.peer)
        assert (dialled.dialled, accepted.dialled) == (True, False)
        assert dialled.remote == two.address
        assert accepted.remote.host == LOOPBACK
        for number in range(100):
            await dialled.send(b"%d" % number)
            await accepted.send(b"-%d" % number)
        assert [await accepted.receive() for _ in range(100)] == [b"%d" % n for n in range(100)]
        assert [await dialled.receive() for _ in range(100)] == [b"-%d" % n for n in range(100)]


async def test_messages_are_not_compressed_even_if_a_client_offers_it():
    async with device(SECRET) as one, device(SECRET) as two, aiohttp.ClientSession() as session:
        raw = await session.ws_connect(
            f"https://{two.address}/v{PROTOCOL_VERSION}/control",
            ssl=one.trust.client_context,
            compress=15,
            timeout=aiohttp.ClientWSTimeout(ws_close=0.01),
        )
        assert raw.compress == 0
        await raw.close()


async def test_a_close_wakes_both_ends_and_tells_the_reason_once():
    async with device(SECRET) as one, device(SECRET) as two:
        dialled, accepted = await linked(one, two)
        waiting = asyncio.ensure_future(accepted.receive())
        own = asyncio.ensure_future(dialled.receive())
        await asyncio.sleep(0)
        await dialled.close("é" * 200)
        await dialled.close("twice")
        with pytest.raises(LinkClosed, match="é" * (MAX_CLOSE_REASON_BYTES // 2) + "$"):
            await waiting
        with pytest.raises(LinkClosed, match="é"):
            await own
        for end in (dialled, accepted):
            with pytest.raises(LinkClosed):
                await end.send(b"late")
            with pytest.raises(LinkClosed):
                await end.receive()
        assert "é" in await accepted.wait_closed()


async def test_a_closed_server_closes_its_channels():
    async with device(SECRET) as one:
        async with device(SECRET) as two:
            dialled, _ = await linked(one, two)
            address = two.address
        with pytest.raises(LinkClosed, match="the device is stopping"):
            await dialled.receive()
        with pytest.raises(DialRefused, match="potluck up"):
            await one.transport.dial(address)


async def test_a_killed_connection_ends_the_channel():
    async with device(SECRET) as one, device(SECRET) as two:
        dialled, accepted = await linked(one, two)
        dialled.abort("pulled")
        with pytest.raises(LinkClosed):
            await accepted.receive()
        with pytest.raises(LinkClosed, match="pulled"):
            await dialled.receive()


async def test_another_mesh_never_reaches_a_handler():
    """Neither side's: the one that dials fails on the other's certificate."""
    async with device(SECRET) as one, device(MeshSecret.new()) as other:
        began_s = time.monotonic()
        with pytest.raises(NotOfThisMesh, match="of another mesh"):
            await one.transport.dial(other.address)
        assert time.monotonic() - began_s < 1
        await other.until(lambda: bool(other.refused))
        assert not other.accepted
        assert other.server.unknown_sockets == 0


async def test_the_same_identity_below_another_ca_is_another_mesh():
    identity = Identity.generate()
    async with device(SECRET) as one, device(MeshSecret.new(), identity=identity) as other:
        with pytest.raises(NotOfThisMesh):
            await other.transport.dial(one.address)
        assert not one.accepted


@pytest.mark.parametrize("with_certificate", [False, True])
async def test_a_client_the_server_does_not_trust_never_reaches_a_handler(with_certificate):
    """With TLS 1.3 the refusal comes after the client's side of the handshake is done."""
    async with device(SECRET) as one, device(SECRET) as two:
        context = anonymous_context()
        if with_certificate:
            context = MeshTrust(one.trust.identity, MeshSecret.new()).client_context
            context.verify_mode = ssl.CERT_NONE
        one.dialer.trust.client_context = context
        with pytest.raises(LinkError, match=r"refuses|refused this device's certificate"):
            await one.transport.dial(two.address)
        await two.until(lambda: bool(two.refused))
        assert "TLS handshake failed" in two.refused[0][1]
        assert not two.accepted


async def test_a_rotated_secret_shuts_the_old_one_out_at_once():
    async with device(SECRET) as one, device(SECRET) as two:
        new = MeshSecret.new()
        two.server.trust = MeshTrust(two.trust.identity, new)
        with pytest.raises(NotOfThisMesh):
            await one.transport.dial(two.address)
        one.dialer.trust = MeshTrust(one.trust.identity, new)
        dialled = await one.transport.dial(two.address)
        assert dialled.peer == two.peer


@pytest.mark.parametrize(("mine", "theirs"), [(1, 2), (7, 1)])
async def test_another_version_is_named_on_both_sides(mine, theirs):
    async with device(SECRET, protocol=mine) as one, device(SECRET, protocol=theirs) as two:
        with pytest.raises(VersionMismatch, match=f"protocol {theirs}, this device {mine}"):
            await one.transport.dial(two.address)
        assert not two.accepted


async def test_plain_http_on_our_port_gets_nothing():
    async with device(SECRET) as here:
        reader, writer = await asyncio.open_connection(LOOPBACK, here.address.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in await read_to_end(reader)
        await here.until(lambda: bool(here.refused))
        assert not here.accepted
        writer.close()


async def test_a_silent_socket_is_closed_when_its_time_is_over():
    async with device(SECRET, handshake_timeout_s=0.05) as here:
        reader, writer = await asyncio.open_connection(LOOPBACK, here.address.port)
        assert await read_to_end(reader) == b""
        await here.until(lambda: bool(here.refused))
        assert here.server.unknown_sockets == 0
        writer.close()


@pytest.mark.parametrize("said", [b"", OURS + b"control HTTP/1.1\r\nHost: x\r\nSlow: "])
async def test_a_request_that_never_ends_is_closed_when_its_time_is_over(said):
    async with device(SECRET, request_timeout_s=0.05) as here:
        context = MeshTrust(Identity.generate(), SECRET).client_context
        reader, writer = await asyncio.open_connection(
            LOOPBACK, here.address.port, ssl=context, server_hostname=""
        )
        writer.write(said)
        assert await read_to_end(reader) == b""
        await here.until(lambda: bool(here.refused))
        assert "silent for too long" in here.refused[0][1]
        assert here.server.unknown_sockets == 0
        writer.transport.abort()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (OURS + b"elsewhere HTTP/1.1", b"404"),
        (b"GET /v1/control HTTP/1.1", b"426"),
        (OURS + b"control HTTP/1.1", b"400"),
        (b"nonsense", b"400"),
        (OURS + b"x" * MAX_REQUEST_LINE_BYTES + b" HTTP/1.1", b"400"),
    ],
)
async def test_a_member_with_a_wrong_request_is_answered_and_closed(request_line, status):
    async with device(SECRET, request_timeout_s=0.5) as here:
        context = MeshTrust(Identity.generate(), SECRET).client_context
        reader, writer = await asyncio.open_connection(
            LOOPBACK, here.address.port, ssl=context, server_hostname=""
        )
        writer.write(request_line + b"\r\nHost: x\r\n\r\n")
        assert status in (await read_to_end(reader)).split(b"\r\n")[0]
        assert not here.accepted
        writer.transport.abort()


async def test_unknown_sockets_are_few_and_members_keep_working():
    async with device(SECRET) as one, device(SECRET) as two:
        dialled, accepted = await linked(one, two)
        idle = [
            await asyncio.open_connection(LOOPBACK, two.address.port)
            for _ in range(MAX_UNKNOWN_SOCKETS + 8)
        ]
        await two.until(lambda: len(two.refused) == 8)
        assert two.server.unknown_sockets == MAX_UNKNOWN_SOCKETS
        assert {reason for _, reason in two.refused} == {
            "too many connections that have not said who they are"
        }
        with pytest.raises(LinkClosed, match="hung up|busy"):
            await one.transport.dial(two.address)
        await dialled.send(b"still here")
        assert await accepted.receive() == b"still here"
        for _, writer in idle:
            writer.transport.abort()


def test_unknown_sockets_are_counted_per_host_except_on_loopback():
    gate = Gate()
    for _ in range(MAX_UNKNOWN_SOCKETS_PER_HOST):
        assert gate.enter("192.168.1.20")
    assert not gate.enter("192.168.1.20")
    assert gate.enter("192.168.1.21")
    for _ in range(MAX_UNKNOWN_SOCKETS_PER_HOST + 1):
        assert gate.enter("127.0.0.1")
        assert gate.enter("::1")
    gate.leave("192.168.1.20")
    assert gate.enter("192.168.1.20")
    while gate.enter("127.0.0.1"):
        pass
    assert gate.count == MAX_UNKNOWN_SOCKETS


async def test_a_member_opens_a_bounded_number_of_links():
    async with device(SECRET) as one, device(SECRET) as two:
        channels = [await one.transport.dial(two.address) for _ in range(MAX_LINKS_PER_PEER)]
        with pytest.raises(LinkClosed, match=f"at most {MAX_LINKS_PER_PEER} links"):
            await one.transport.dial(two.address)
        await channels[0].close("room")
        with pytest.raises(LinkClosed, match="room"):
            await two.accepted[0].receive()
        await asyncio.sleep(0)  # the server's handler sees the end in its turn
        await one.transport.dial(two.address)


async def test_control_messages_are_bounded():
    async with device(SECRET) as one, device(SECRET) as two:
        dialled, accepted = await linked(one, two)
        await dialled.send(bytes(MAX_CONTROL_BYTES))
        assert len(await accepted.receive()) == MAX_CONTROL_BYTES
        await dialled.send(bytes(MAX_CONTROL_BYTES + 1))
        with pytest.raises(BadMessage, match="no message of ours"):
            await accepted.receive()
        with pytest.raises(LinkClosed):
            await dialled.receive()


async def test_text_is_no_message_of_ours():
    async with device(SECRET) as one, device(SECRET) as two:
        dialled, accepted = await linked(one, two)
        await accepted._raw.send_str("hello")
        with pytest.raises(BadMessage, match="text"):
            await dialled.receive()


async def test_a_device_does_not_talk_to_itself():
    identity = Identity.generate()
    async with device(SECRET, identity=identity) as one, device(SECRET, identity=identity) as two:
        for address in (one.address, two.address):
            with pytest.raises(OwnIdentity, match=r"itself"):
                await one.transport.dial(address)
        assert not one.accepted
        assert not two.accepted


async def test_nobody_there_nobody_answering_and_another_program_are_told_apart():
    async def other_program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    silent = socket.create_server((LOOPBACK, 0))
    program = await asyncio.start_server(other_program, LOOPBACK, 0)
    with socket.create_server((LOOPBACK, 0)) as free:
        nobody = Address(LOOPBACK, free.getsockname()[1])
    async with device(SECRET, dial_timeout_s=0.2) as here:
        with pytest.raises(DialRefused, match=f"nobody listens at {nobody}"):
            await here.transport.dial(nobody)
        with pytest.raises(DialTimeout, match="did not answer within 0.2 s"):
            await here.transport.dial(Address(LOOPBACK, silent.getsockname()[1]))
        with pytest.raises(NotOfThisMesh, match="another program"):
            await here.transport.dial(Address(LOOPBACK, program.sockets[0].getsockname()[1]))
    silent.close()
    program.close()
    await program.wait_closed()


async def test_a_port_in_use_says_which_and_what_to_type():
    async with device(SECRET) as here:
        trust = MeshTrust(Identity.generate(), SECRET)
        server = WebsocketServer(trust, [LOOPBACK], here.address.port)
        with pytest.raises(ConfigError, match=f"port {here.address.port} of .* --port"):
            await server.start()


async def test_one_port_on_every_host_and_no_host_is_an_error():
    trust = MeshTrust(Identity.generate(), SECRET)
    server = WebsocketServer(trust, [LOOPBACK, "127.0.0.2"], 0)
    transport = ControlTransport(server, Dialer(trust))

    async def accept(channel) -> None:
        await channel.send(b"hello")

    first = await transport.listen(accept)
    assert server.addresses == (first, Address("127.0.0.2", first.port))
    async with device(SECRET) as here:
        for address in server.addresses:
            assert await (await here.transport.dial(address)).receive() == b"hello"
    await transport.close()
    for hosts, said in (([], "--interface"), (["192.0.2.77"], "not an address of this machine")):
        with pytest.raises(ConfigError, match=said):
            await WebsocketServer(trust, hosts, 0).start()
