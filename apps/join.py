"""`potluck join` with the long code: can the mesh be reached from here, and who of it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from mesh.config import StateFolder
from mesh.errors import LinkError, ProtocolError
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.limits import DEFAULT_PORT, MAX_CONTROL_BYTES
from mesh.net.control import CONTROL_ROUTE
from mesh.net.dialer import Dialer
from mesh.net.discovery import SERVICE_TYPE, Discovery, choose_interfaces
from mesh.trust import MeshSecret, MeshTrust

LOOK_S = 4.0  # mDNS answers within 0.2 s on a LAN; a sleepy Wi-Fi needs a few tries


@dataclass(slots=True)
class Found:
    """Members that proved to be of this mesh, and what else was seen, in words."""

    members: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)


async def look_for_members(
    folder: StateFolder,
    secret: MeshSecret,
    addresses: list[Address],
    interfaces: tuple[str, ...],
) -> Found:
    """Dials the given addresses and whatever mDNS hints at; returns at the first member.

    A given address that is of another mesh, or does not answer, raises LinkError in words.
    """
    identity = Identity.load(folder)
    trust = MeshTrust(identity, secret)
    dialer = Dialer(trust)
    found = Found()
    try:
        for address in addresses:
            await _greet(dialer, address, found)
        if not found.members:
            await _search(identity.peer, trust.tag, dialer, interfaces, found)
    finally:
        await dialer.close()
    return found


async def _greet(dialer: Dialer, address: Address, found: Found) -> None:
    websocket = await dialer.dial(address, CONTROL_ROUTE, max_bytes=MAX_CONTROL_BYTES)
    await websocket.close("only looking whether the code is right")
    found.members.append(f"{websocket.peer.short} at {address}")


async def _search(
    own: PeerId, tag: str, dialer: Dialer, interfaces: tuple[str, ...], found: Found
) -> None:
    hints: asyncio.Queue[Address] = asyncio.Queue()
    async with listening(
        own,
        tag,
        SERVICE_TYPE,
        interfaces,
        lambda address, peer: hints.put_nowait(address),
        found.hints.append,
    ):
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                while not found.members:
                    address = await hints.get()
                    try:
                        await _greet(dialer, address, found)
                    except (LinkError, ProtocolError) as error:
                        found.hints.append(str(error))


@asynccontextmanager
async def listening(
    own: PeerId,
    tag: str,
    service_type: str,
    interfaces: tuple[str, ...],
    on_hint: Callable[[Address, PeerId], None],
    on_text: Callable[[str], None],
) -> AsyncIterator[None]:
    """Hears mDNS announcements, and makes none."""
    discovery = Discovery(
        own=own,
        name="joining",
        tag=tag,
        port=DEFAULT_PORT,
        interfaces=choose_interfaces(interfaces or None).chosen,
        on_hint=on_hint,
        on_other=on_text,
        on_trouble=on_text,
        service_type=service_type,
        announce=False,
    )
    looking = asyncio.ensure_future(discovery.run())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])
