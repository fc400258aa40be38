"""What the mesh needs of a network. Real sockets (`websocket`) and the simulated home implement it.

A channel is an authenticated, ordered connection for control messages: by the time one exists,
both ends have proved that they know the mesh secret, and `peer` is the other end's proved identity.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from mesh.ids import Address, PeerId


class Channel(Protocol):
    """One connection to one peer, carrying whole encoded control messages."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by the handshake."""

    @property
    def remote(self) -> Address:
        """Where the other end is; its listening port only if this side dialled."""

    @property
    def dialled(self) -> bool:
        """True on the side that opened the connection."""

    async def send(self, data: bytes) -> None:
        """Raises LinkClosed once the connection is known to be broken."""

    async def receive(self) -> bytes:
        """The next message, at most MAX_CONTROL_BYTES; raises LinkClosed at the end."""

    async def close(self, reason: str) -> None:
        """Closes at once and wakes a waiting `receive`; may be called twice."""


Accept = Callable[[Channel], Awaitable[None]]


class Transport(Protocol):
    """A device's door: it listens at one address and dials others."""

    async def listen(self, accept: Accept) -> Address:
        """Starts to listen; `accept` runs once per incoming channel, in a task of its own."""

    async def dial(self, address: Address) -> Channel:
        """Raises DialRefused, DialTimeout, NotOfThisMesh or VersionMismatch."""

    async def close(self) -> None:
        """Stops listening and closes every channel."""
