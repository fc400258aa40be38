"""Calling an address: does TCP get there, and who answers?"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace

from apps.doctor.seen import Call, Outcome, Source
from mesh.errors import (
    DialRefused,
    DialTimeout,
    LinkError,
    NotOfThisMesh,
    OwnIdentity,
    ProtocolError,
    VersionMismatch,
)
from mesh.ids import Address
from mesh.limits import DIAL_TIMEOUT_S, MAX_CONTROL_BYTES
from mesh.net.control import CONTROL_ROUTE
from mesh.net.dialer import Dialer
from mesh.trust import MeshTrust


async def call_all(calls: Sequence[Call], trust: MeshTrust | None) -> tuple[Call, ...]:
    """The calls with their outcomes, all made at once. Without `trust` only TCP is tried."""
    dialer = Dialer(trust) if trust is not None else None
    try:
        async with asyncio.TaskGroup() as tasks:
            under_way = [tasks.create_task(_call(call, dialer)) for call in calls]
    finally:
        if dialer is not None:
            await dialer.close()
    return tuple(task.result() for task in under_way)


async def resolve(host: str, port: int) -> Call:
    """A call to make to a device that a person named; its outcome is NO_NAME if there is none."""
    try:
        address = Address(str(ipaddress.ip_address(host)), port)
    except ValueError:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, family=socket.AF_INET)
        except OSError as error:
            text = f"no device is called {host!r} here ({error.strerror or error})"
            return Call(Address(host, port), Source.ASKED, Outcome.NO_NAME, text=text)
        address = Address(str(found[0][4][0]), port)
        return Call(address, Source.ASKED, Outcome.SILENT, name=host)
    return Call(address, Source.ASKED, Outcome.SILENT)


async def _call(call: Call, dialer: Dialer | None) -> Call:
    outcome, text = await _connect(call.address)
    if outcome is not Outcome.OPEN or dialer is None:
        return replace(call, outcome=outcome, text=text)
    try:
        websocket = await dialer.dial(call.address, CONTROL_ROUTE, max_bytes=MAX_CONTROL_BYTES)
    except (LinkError, ProtocolError) as error:
        return replace(call, outcome=_outcome_of(error), text=str(error))
    await websocket.close("only looking who answers here")
    return replace(call, outcome=Outcome.MEMBER, peer=websocket.peer)


async def _connect(address: Address) -> tuple[Outcome, str]:
    """OPEN, or why not: who refuses is there, who is silent may not be."""
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except ConnectionRefusedError:
        return Outcome.REFUSED, f"nobody listens at {address}"
    except TimeoutError:
        return Outcome.SILENT, f"{address} did not answer within {DIAL_TIMEOUT_S:g} s"
    except OSError as error:
        return Outcome.NO_WAY, f"{address} cannot be reached: {error.strerror or error}"
    writer.transport.abort()
    return Outcome.OPEN, ""


def _outcome_of(error: LinkError | ProtocolError) -> Outcome:
    match error:
        case OwnIdentity():
            return Outcome.OWN_KEY
        case VersionMismatch():
            return Outcome.OTHER_VERSION
        case NotOfThisMesh():
            return Outcome.STRANGER
        case DialTimeout():
            return Outcome.MUTE
        case DialRefused():
            return Outcome.REFUSED
        case _:
            return Outcome.SAYS_NO
