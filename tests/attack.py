"""Everything that one bad machine of the network can do to a device's port and to mDNS, at once:

    python -m tests.attack HOST PORT --from ADDRESS... --seconds 12 [--home FOLDER] [--fakes TAG]

Idle sockets, TLS that drips, a flood of connections; with the folder of a member also headers that
drip and readers that do not read; with a mesh's tag a thousand devices announced that are none.
Prints one JSON object: what was tried, and how long a silent socket was left open at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText

from mesh.config import StateFolder
from mesh.identity import Identity
from mesh.net.discovery import SERVICE_TYPE
from mesh.net.overhear import GROUP, PORT
from mesh.trust import MeshSecret, MeshTrust

IDLE = 2000  # sockets that say nothing
DRIPPING = 20  # of TLS, and as many of headers
SLOW = 10  # members that do not read
FAKES = 1000
CONNECTS_PER_S = 300  # of all idle ones together: whoever is closed comes again
DRIP_S = 0.5  # a byte


class Attack:
    def __init__(self, host: str, port: int, sources: list[str], seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self.longest_open_s = 0.0
        self._target = (host, port)
        self._sources = sources
        self._seconds = seconds
        self._ends_s = time.monotonic() + seconds

    async def run(self, trust: MeshTrust | None, tag: str) -> None:
        stranger = MeshTrust(Identity.generate(), MeshSecret.new())
        hello = client_hello(stranger.client_context)
        attacks: list[Callable[[], Awaitable[None]]] = []
        if trust is not None:  # first, while they are let in
            headers = b"GET /v2/control HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000
            attacks += [lambda: self._slow(trust.client_context)] * SLOW
            attacks += [lambda: self._drip(headers, trust.client_context)] * DRIPPING
        attacks += [lambda: self._drip(hello, None)] * DRIPPING
        attacks += [self._idle] * IDLE
        async with asyncio.TaskGroup() as tasks:
            for number, attack in enumerate(attacks):
                tasks.create_task(self._again(attack, number / CONNECTS_PER_S))
            if tag:
                tasks.create_task(self._announce(tag))

    async def _again(self, attack: Callable[[], Awaitable[None]], first_s: float) -> None:
        await asyncio.sleep(first_s)
        while time.monotonic() < self._ends_s:
            with suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(max(0.01, self._ends_s - time.monotonic())):
                    await attack()
            pause_s = (IDLE / CONNECTS_PER_S) * random.uniform(0.5, 1.5)
            await asyncio.sleep(min(pause_s, max(0.0, self._ends_s - time.monotonic())))

    async def _open(
        self, context: ssl.SSLContext | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            *self._target,
            ssl=context,
            server_hostname="" if context else None,
            local_addr=(random.choice(self._sources), 0),
        )

    async def _idle(self) -> None:
        reader, writer = await self._open(None)
        began_s = time.monotonic()
        self.counts["idle"] += 1
        try:
            await reader.read()  # until the other end has had enough
        finally:
            self.longest_open_s = max(self.longest_open_s, time.monotonic() - began_s)
            writer.transport.abort()

    async def _drip(self, data: bytes, context: ssl.SSLContext | None) -> None:
        reader, writer = await self._open(context)
        self.counts["headers" if context else "tls"] += 1
        ended = asyncio.ensure_future(reader.read())
        try:
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.wait((ended,), timeout=DRIP_S)
                if ended.done():
                    return
        finally:
            ended.cancel()
            writer.transport.abort()

    async def _slow(self, context: ssl.SSLContext) -> None:
        """Asks for a control link as a member may, and never reads a byte of what comes."""
        reader, writer = await self._open(context)
        self.counts["slow"] += 1
        writer.transport.pause_reading()
        writer.write(
            b"GET /v2/control HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        try:
            await asyncio.sleep(self._ends_s - time.monotonic())
        finally:
            writer.transport.abort()

    async def _announce(self, tag: str) -> None:
        """Devices of the very mesh, at addresses where nobody is."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
            liar.setblocking(False)
            liar.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            liar.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            liar.bind(("", PORT))
            here = socket.inet_aton(self._sources[0])
            liar.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            for number in range(FAKES):
                with suppress(OSError):
                    liar.sendto(fake_device(number, tag), (GROUP, PORT))
                    self.counts["fakes"] += 1
                await asyncio.sleep(self._seconds / FAKES)
                if time.monotonic() > self._ends_s:
                    return


def fake_device(number: int, tag: str) -> bytes:
    """The announcement of a device that is none."""
    name, server = f"fake{number}.{SERVICE_TYPE}", f"fake{number}.local."
    said = (b"v=1", b"mesh=" + tag.encode(), b"id=%064x" % (number + 1), b"name=fake")
    text = b"".join(bytes([len(part)]) + part for part in said)
    out = DNSOutgoing(0x8400)
    out.add_answer_at_time(DNSPointer(SERVICE_TYPE, 12, 1, 4500, name), 0)
    out.add_answer_at_time(DNSService(name, 33, 1, 120, 0, 0, 8478, server), 0)
    out.add_answer_at_time(DNSText(name, 16, 1, 4500, text), 0)
    address = socket.inet_aton(f"10.77.{1 + number // 200}.{1 + number % 200}")
    out.add_answer_at_time(DNSAddress(server, 1, 1, 120, address), 0)
    return out.packets()[0]


def client_hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a handshake."""
    out = ssl.MemoryBIO()
    handshake = context.wrap_bio(ssl.MemoryBIO(), out)
    with suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return out.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--from", dest="sources", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--fakes", default="")
    asked = parser.parse_args()
    trust = None
    if asked.home is not None:
        folder = StateFolder.open(asked.home)
        secret = MeshSecret.load(folder)
        assert secret is not None
        trust = MeshTrust(Identity.load(folder), secret)
    attack = Attack(asked.host, asked.port, asked.sources, asked.seconds)
    asyncio.run(attack.run(trust, asked.fakes))
    print(json.dumps({**attack.counts, "longest_open_s": attack.longest_open_s}))


if __name__ == "__main__":
    main()
