"""The tensor links that follow the members: up with who is here, down with who has gone."""

from __future__ import annotations

import asyncio

from mesh.ids import PeerId
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node


class PeerLinks:
    """One thing at a time with each peer's links, in the order of the events."""

    def __init__(self, node: Node, links: TensorLinks) -> None:
        self._node = node
        self._links = links
        self._locks: dict[PeerId, asyncio.Lock] = {}

    async def connect(self, peer: PeerId) -> None:
        """Where the peer is now, if it is here at all."""
        async with self._lock(peer):
            member = self._node.view.find(peer)
            if member is not None and member.is_here and member.address is not None:
                await self._links.connect(peer, member.address)

    async def disconnect(self, peer: PeerId) -> None:
        async with self._lock(peer):
            await self._links.disconnect(peer)

    def _lock(self, peer: PeerId) -> asyncio.Lock:
        return self._locks.setdefault(peer, asyncio.Lock())
