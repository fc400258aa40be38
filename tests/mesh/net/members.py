"""Whole members on 127.0.0.1: node, links, keyring on disk and the rotation of the secret."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from mesh.config import StateFolder
from mesh.events import PeerJoined
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.keyring import Keyring
from mesh.net.control import ControlTransport
from mesh.net.credentials import Credentials
from mesh.net.dialer import Dialer
from mesh.net.rekey import RekeyDesk
from mesh.net.rotator import Rotator
from mesh.net.server import WebsocketServer
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node
from mesh.state_store import FileStore
from mesh.trust import MeshSecret, MeshTrust, mesh_tag
from tests.mesh.home import DEADLINE_S, LOOPBACK


@dataclass
class Member:
    """One device; `start` it any number of times, its disk and port stay."""

    name: str
    folder: StateFolder
    port: int = 0
    hints: tuple[Address, ...] = ()
    frames: list[int] = field(default_factory=list)
    trusts: list[MeshTrust] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        identity = Identity.load(self.folder)
        keyring = Keyring.load(self.folder)
        assert keyring is not None
        self.credentials = Credentials(identity, keyring, self.folder)
        trust = self.credentials.trust
        self.server = WebsocketServer(trust, [LOOPBACK], self.port)
        self.dialer = Dialer(trust)
        self.credentials.users += [self.server, self.dialer]
        self.trusts.append(trust)
        self.credentials.on_changed.append(lambda: self.trusts.append(self.credentials.trust))
        self.links = TensorLinks(
            self.server,
            self.dialer,
            on_frame=lambda peer, frame: self.frames.append(frame.header.position),
            admit=lambda peer: self.node.view.is_here(peer),
        )
        self.node = Node(
            identity.peer,
            self.name,
            ControlTransport(self.server, self.dialer),
            FileStore(self.folder.path),
            random.Random(),
        )
        self.desk = RekeyDesk(self.server, self.credentials)
        self.rotator = Rotator(self.node, self.dialer, self.credentials, self.desk)
        self.node.subscribe(
            lambda event: (
                self.credentials.remember([event.peer]) if isinstance(event, PeerJoined) else None
            )
        )
        self._task = asyncio.ensure_future(self._run())
        self.port = (await self.node.started()).port
        for address in self.hints:
            self.node.hint(address)

    async def _run(self) -> None:
        async with self.links, asyncio.TaskGroup() as tasks:
            tasks.create_task(self.node.run())
            tasks.create_task(self.rotator.run())

    async def crash(self) -> None:
        """Ends without a goodbye."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    @property
    def peer(self) -> PeerId:
        return self.credentials.identity.peer

    @property
    def address(self) -> Address:
        return Address(LOOPBACK, self.port)

    @property
    def generation(self) -> int:
        return self.credentials.keyring.generation

    @property
    def secret(self) -> MeshSecret:
        return self.credentials.keyring.secret

    def links_below(self, secret: MeshSecret) -> int:
        """Open websockets that were made with this secret."""
        return sum(
            not link._closed.is_set()
            for trust in self.trusts
            if trust.tag == mesh_tag(secret)
            for link in trust._links
        )

    def linked(self, *others: Member) -> bool:
        """With a link to each that was made below the secret in force."""
        alive = {one.peer for one in self.node.view.alive}
        fresh = {link.peer for link in self.credentials.trust._links}
        return all(other.peer in alive & fresh for other in others)


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not happened():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def members(root: Path, *names: str) -> AsyncIterator[list[Member]]:
    """They have met, and know each other as members."""
    secret = MeshSecret.new()
    there: list[Member] = []
    try:
        for name in names:
            folder = StateFolder.open(root / name)
            secret.save(folder)
            there.append(Member(name, folder, hints=tuple(one.address for one in there)))
            await there[-1].start()
        await until(lambda: all_linked(there))
        yield there
    finally:
        for member in there:
            await member.crash()


def all_linked(there: list[Member]) -> bool:
    return all(
        one.linked(*(other for other in there if other is not one))
        and len(one.credentials.keyring.roster | {one.peer}) >= len(there)
        for one in there
    )
