"""Who may be in the mesh, put together: the secret in force, letting in, shutting out."""

from __future__ import annotations

import asyncio
from typing import Any

from apps.api.trust import TrustRoutes
from apps.ask import hear_all
from apps.invitations import Invitations
from apps.timeline import Timeline
from mesh.events import Event, PeerJoined
from mesh.ids import PeerId
from mesh.limits import LEAVE_TIMEOUT_S
from mesh.net.credentials import Credentials
from mesh.net.dialer import Dialer
from mesh.net.discovery import Discovery, Interface
from mesh.net.rekey import RekeyDesk
from mesh.net.rotator import Rotator
from mesh.net.server import WebsocketServer
from mesh.node import Node
from mesh.nursery import Nursery
from mesh.trust import mesh_tag

LEFT_FOR_GOOD = "trust.left"  # the sender forgets the mesh: no next secret is for it


class Trusting:
    """`run` it beside the node."""

    def __init__(
        self,
        node: Node,
        server: WebsocketServer,
        dialer: Dialer,
        credentials: Credentials,
        name: str,
        interfaces: tuple[Interface, ...],
        timeline: Timeline,
    ) -> None:
        self._node = node
        self._credentials = credentials
        self._name = name
        self._interfaces = interfaces
        self._timeline = timeline
        self._new_secret = asyncio.Event()
        self._nursery = Nursery()
        desk = RekeyDesk(server, credentials, self._taken)
        self._rotator = Rotator(node, dialer, credentials, desk)
        invitations = Invitations(credentials, name, interfaces, timeline, self._nursery)
        self.routes = TrustRoutes(
            node=node,
            credentials=credentials,
            invitations=invitations,
            rotator=self._rotator,
            timeline=timeline,
        )
        credentials.users += [server, dialer]
        credentials.on_changed.append(self._new_secret.set)
        node.on_request(LEFT_FOR_GOOD, self._left_for_good)
        node.subscribe(self._on_event)

    async def run(self) -> None:
        """Announces this device, and brings the secret in force to those that were off."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._nursery.open(tasks)
                tasks.create_task(self._rotator.run())
                tasks.create_task(self._announce())
        finally:
            self._nursery.close()

    async def say_goodbye(self) -> None:
        """Tells the others that this device forgets the mesh, not only stops; whoever misses it
        has `potluck rotate --without`.
        """
        others = [one.peer for one in self._node.view.alive if one.peer != self._node.view.me]
        await hear_all(self._node, others, LEFT_FOR_GOOD, None, LEAVE_TIMEOUT_S)

    async def _announce(self) -> None:
        """By mDNS, and anew when the secret changes, since the tag follows from it."""
        address = await self._node.started()
        while True:
            self._new_secret.clear()
            announcing = asyncio.ensure_future(self._discovery(address.port).run())
            try:
                await self._new_secret.wait()
            finally:
                announcing.cancel()
                await asyncio.wait([announcing])

    def _discovery(self, port: int) -> Discovery:
        return Discovery(
            own=self._node.view.me,
            name=self._name,
            tag=self._credentials.trust.tag,
            port=port,
            interfaces=self._interfaces,
            on_hint=self._node.hint,
            on_other=lambda text: self._timeline.note("other", text),
            on_trouble=lambda text: self._timeline.note("trouble", text),
            old_tags=[mesh_tag(secret) for secret in self._credentials.keyring.old],
            on_behind=self._rotator.hint,
        )

    def _on_event(self, event: Event) -> None:
        if isinstance(event, PeerJoined):
            self._credentials.remember([event.peer])

    def _taken(self, giver: PeerId) -> None:
        number = self._credentials.keyring.generation
        self._timeline.note("rotated", f"{giver.short} gave the mesh a new secret, number {number}")

    async def _left_for_good(self, peer: PeerId, body: Any) -> None:
        self._credentials.forget(peer)
