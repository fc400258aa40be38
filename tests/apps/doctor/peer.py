"""A device that listens and announces itself, and does nothing else: `python -m ...peer HOME HOST`.

It has no torch, so many of them start at once.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from mesh.config import StateFolder
from mesh.identity import Identity
from mesh.limits import DEFAULT_PORT, MAX_CONTROL_BYTES, PROTOCOL_VERSION
from mesh.net.control import CONTROL_ROUTE
from mesh.net.discovery import Discovery
from mesh.net.interfaces import Interface
from mesh.net.server import WebsocketServer
from mesh.net.websocket import Websocket
from mesh.trust import MeshSecret, MeshTrust


async def run(home: Path, interface: str, host: str, name: str, protocol: int) -> None:
    folder = StateFolder.open(home)
    identity, secret = Identity.load(folder), MeshSecret.load(folder)
    assert secret is not None
    trust = MeshTrust(identity, secret)
    server = WebsocketServer(trust, [host], DEFAULT_PORT, protocol=protocol)

    async def hold(websocket: Websocket) -> None:
        await websocket.wait_closed()

    server.route(CONTROL_ROUTE, hold, max_bytes=MAX_CONTROL_BYTES)
    address = await server.start()
    discovery = Discovery(
        own=identity.peer,
        name=name,
        tag=trust.tag,
        port=address.port,
        interfaces=[Interface(interface, (host,))],
        on_hint=lambda address, peer: None,
        protocol=protocol,
    )
    print("up", flush=True)
    await discovery.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("host")
    parser.add_argument("--interface", default="eth0")
    parser.add_argument("--name", default="peer")
    parser.add_argument("--protocol", type=int, default=PROTOCOL_VERSION)
    asked = parser.parse_args()
    asyncio.run(run(asked.home, asked.interface, asked.host, asked.name, asked.protocol))
