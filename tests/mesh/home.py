"""Devices on 127.0.0.1 for these tests, and a relay that breaks connections between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from mesh.identity import Identity
from mesh.ids import Address, Epoch, PeerId, PlanId, SessionId
from mesh.limits import PROTOCOL_VERSION
from mesh.net.control import ControlTransport
from mesh.net.dialer import Dialer
from mesh.net.server import WebsocketServer
from mesh.net.tensor_links import TensorLinks
from mesh.net.websocket import Websocket
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from mesh.trust import MeshSecret, MeshTrust

LOOPBACK = "127.0.0.1"
DEADLINE_S = 30.0


@dataclass
class Device:
    trust: MeshTrust
    server: WebsocketServer
    dialer: Dialer
    transport: ControlTransport
    links: TensorLinks
    refused: list[tuple[str, str]] = field(default_factory=list)
    accepted: list[Websocket] = field(default_factory=list)
    frames: list[tuple[PeerId, FrameHeader, bytes]] = field(default_factory=list)
    refused_frames: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def peer(self) -> PeerId:
        return self.trust.peer

    @property
    def address(self) -> Address:
        return self.transport.address

    def note(self, where: list[Any], what: Any) -> None:
        where.append(what)
        self.changed.set()

    async def until(self, happened: Callable[[], bool]) -> None:
        """For what this device notes; everything else has an event of its own."""
        async with asyncio.timeout(DEADLINE_S):
            while not happened():
                self.changed.clear()
                await self.changed.wait()

    async def until_sending(self, peer: PeerId) -> None:
        stream = self.links._sending(peer)
        async with asyncio.timeout(DEADLINE_S):
            await stream.until(lambda: stream.attached)


@contextlib.asynccontextmanager
async def device(
    secret: MeshSecret,
    *,
    identity: Identity | None = None,
    protocol: int = PROTOCOL_VERSION,
    dial_timeout_s: float = 3.0,
    **server: Any,
) -> AsyncIterator[Device]:
    """A listening device that records what reaches it, with tensor links that redial at once."""
    trust = MeshTrust(identity or Identity.generate(), secret)
    listening = WebsocketServer(trust, [LOOPBACK], 0, protocol=protocol, **server)
    dialer = Dialer(trust, protocol=protocol, timeout_s=dial_timeout_s)
    links = TensorLinks(
        listening, dialer, admit=lambda peer: True, redial_min_s=0.001, redial_max_s=0.01
    )
    here = Device(trust, listening, dialer, ControlTransport(listening, dialer), links)

    def on_frame(peer: PeerId, frame: TensorFrame) -> None:
        here.note(here.frames, (peer, frame.header, bytes(frame.payload)))

    async def accept(channel: Any) -> None:
        here.note(here.accepted, channel)

    links.on_frame = on_frame
    links.on_refused = lambda peer, reason: here.note(here.refused_frames, reason)
    links.on_broken = lambda peer, reason: here.note(here.broken, reason)
    listening.on_refused = lambda host, reason: here.note(here.refused, (host, reason))
    await here.transport.listen(accept)
    try:
        async with links:
            yield here
    finally:
        await here.transport.close()


async def link_up(sender: Device, receiver: Device, address: Address | None = None) -> None:
    """Tensors can flow from the one to the other; `address` is where the receiver dials."""
    await sender.links.connect(receiver.peer, receiver.address)
    await receiver.links.connect(sender.peer, address or sender.address)
    await sender.until_sending(receiver.peer)


def header(width: int, position: int = 0, kind: Kind = Kind.HIDDEN) -> FrameHeader:
    """One row of bytes, marked by its position."""
    return FrameHeader(
        epoch=Epoch((1 << 40) + 1, PeerId("ab" * 32)),
        plan=PlanId("cd" * 16),
        session=SessionId("ef" * 16),
        kind=kind,
        dtype=DType.UINT8,
        choose=False,
        position=position,
        rows=1,
        row=0,
        tile_rows=1,
        width=width,
    )


class Relay:
    """A TCP relay to one address that counts bytes and can break what passes through it.

    `cut_after` gives, per connection, how many bytes of the answering side pass before it is cut.
    """

    def __init__(self, target: Address, cut_after: Callable[[], int | None] = lambda: None) -> None:
        self.connections = 0
        self.answered_bytes = 0
        self._target = target
        self._cut_after = cut_after
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Address]:
        server = await asyncio.start_server(self._relay, LOOPBACK, 0)
        try:
            yield Address(LOOPBACK, server.sockets[0].getsockname()[1])
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            answers, there = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, there}
        self._writers |= ends

        async def pump(
            source: asyncio.StreamReader, to: asyncio.StreamWriter, budget: int | None
        ) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(
                    1 << 16 if budget is None else min(budget, 1 << 16)
                ):
                    if budget is not None:
                        budget -= len(data)
                    if source is answers:
                        self.answered_bytes += len(data)
                    to.write(data)
                    await to.drain()
                    if budget == 0:
                        break
            for end in ends:
                end.transport.abort()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pump(reader, there, None))
                tasks.create_task(pump(answers, writer, self._cut_after()))
        finally:
            self._writers -= ends
