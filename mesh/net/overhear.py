"""What is said by mDNS on each interface, and whether this device hears itself. For `doctor`.

`Discovery` keeps the hints and forgets the rest. This asks for a few seconds who is there, on a
socket for each interface, and tells everything: whether the own question came back, which it only
does where multicast gets out of this device and in again, and who announces what from where.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]  # it has them, and does not list them
    DNSAddress,
    DNSIncoming,
    DNSService,
    DNSText,
)

from mesh.errors import BadId
from mesh.ids import Address, PeerId
from mesh.limits import (
    LOOK_AROUND_S,
    MAX_CANDIDATES,
    MAX_HINTS_PER_CANDIDATE,
    MAX_NAME_CHARS,
)
from mesh.net.discovery import SERVICE_TYPE
from mesh.net.interfaces import Interface
from mesh.printable import printable

GROUP = "224.0.0.251"
PORT = 5353
QUESTIONS = 3  # in LOOK_AROUND_S: Wi-Fi loses multicast now and then
_TYPE_PTR, _CLASS_IN = 12, 1
_LINUX_IP_MULTICAST_ALL = 49  # Python has no name for it


@dataclass(frozen=True, slots=True)
class Announced:
    """What a device says of itself; believed by nobody."""

    source: str  # the host that it came from
    peer: PeerId
    name: str
    tag: str
    protocol: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """On one interface. `trouble` is why nothing could be asked there; empty if it could."""

    interface: str
    echo: bool
    trouble: str
    announced: tuple[Announced, ...]


async def overhear(
    interfaces: Sequence[Interface], seconds: float = LOOK_AROUND_S
) -> tuple[Heard, ...]:
    """Asks on every interface at once, and listens for so long."""
    async with asyncio.TaskGroup() as tasks:
        asking = [
            tasks.create_task(_overhear(one.name, one.hosts[0], seconds)) for one in interfaces
        ]
    return tuple(task.result() for task in asking)


async def _overhear(name: str, host: str, seconds: float) -> Heard:
    loop = asyncio.get_running_loop()
    try:
        transport, ear = await loop.create_datagram_endpoint(
            lambda: _Ear(host, _question()), sock=_socket(host)
        )
    except OSError as error:
        return Heard(name, False, error.strerror or str(error), ())
    try:
        for _ in range(QUESTIONS):
            transport.sendto(ear.question, (GROUP, PORT))
            await asyncio.sleep(seconds / QUESTIONS)
    finally:
        transport.close()
    return Heard(name, ear.echo, ear.trouble, tuple(ear.announced.values()))


class _Ear(asyncio.DatagramProtocol):
    """One socket's datagrams. What is no announcement of ours is passed over."""

    def __init__(self, host: str, question: bytes) -> None:
        self.question = question
        self.echo = False
        self.trouble = ""
        self.announced: dict[tuple[str, PeerId], Announced] = {}
        self._host = host

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if data == self.question:
            self.echo = self.echo or addr[0] == self._host
            return
        for one in read_announcements(data, str(addr[0])):
            if len(self.announced) < MAX_CANDIDATES:
                self.announced[one.source, one.peer] = one

    def error_received(self, exc: Exception) -> None:
        """A firewall of this device that forbids sending says so."""
        self.trouble = getattr(exc, "strerror", None) or str(exc)


def read_announcements(data: bytes, source: str) -> Iterator[Announced]:
    """Devices of whatever mesh that a datagram tells of; nothing for anything else."""
    message = DNSIncoming(data, (source, PORT))
    if not message.valid or message.is_query():
        return
    records = message.answers()[: 4 * MAX_CANDIDATES]
    texts = {one.name: one.text for one in records if isinstance(one, DNSText)}
    for service in records:
        if isinstance(service, DNSService) and service.name.endswith(SERVICE_TYPE):
            said = _properties(texts.get(service.name, b""))
            try:
                peer = PeerId.parse(said.get("id", ""))
            except BadId:
                continue
            hosts = [
                socket.inet_ntoa(one.address)
                for one in records
                if isinstance(one, DNSAddress)
                and one.name == service.server
                and len(one.address) == 4
            ]
            addresses = [Address(host, service.port) for host in hosts or [source]]
            yield Announced(
                source,
                peer,
                printable(said.get("name"), MAX_NAME_CHARS),
                printable(said.get("mesh"), MAX_NAME_CHARS),
                printable(said.get("v"), 9),
                tuple(addresses[:MAX_HINTS_PER_CANDIDATE]),
            )


def _properties(text: bytes) -> dict[str, str]:
    """Of a TXT record: `key=value`, each behind its length."""
    found: dict[str, str] = {}
    while text:
        entry, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        key, _, value = entry.partition(b"=")
        found[key.decode(errors="replace")] = value.decode(errors="replace")
    return found


def _question() -> bytes:
    """Who is of a mesh here? Its number makes it known again when it comes back."""
    labels = (label.encode() for label in SERVICE_TYPE.split("."))
    name = b"".join(bytes([len(label)]) + label for label in labels)  # the last one is empty
    header = struct.pack(">6H", secrets.randbelow(1 << 16), 0, 1, 0, 0, 0)
    return header + name + struct.pack(">2H", _TYPE_PTR, _CLASS_IN)


def _socket(host: str) -> socket.socket:
    """Beside whatever else of this machine speaks mDNS; hears what comes on its interface only."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("", PORT))
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a kernel without it: we hear more than we should
                sock.setsockopt(socket.IPPROTO_IP, _LINUX_IP_MULTICAST_ALL, 0)
        here = socket.inet_aton(host)
        group = socket.inet_aton(GROUP) + here
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    except OSError:
        sock.close()
        raise
    return sock
