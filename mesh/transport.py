"""What the mesh needs of a network. Real sockets (`mesh.net`) and the simulated home implement it.

A channel is an authenticated, ordered connection for control messages: by the time one exists,
both ends have proved that they know the mesh secret, and `peer` is the other end's proved identity.
A line is one for everything else: it belongs to a route, and may be cut.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, NoReturn, Protocol

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

    async def receive(self) -> bytes | bytearray:
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


class Line(Channel, Protocol):
    """One connection to one peer, on a route, for many messages or large ones."""

    @property
    def is_free(self) -> bool:
        """Whether the network takes more: `send` would not wait."""

    def write(self, data: bytes | memoryview) -> None:
        """As `send`, but never waits: what the network does not take yet stays in memory."""

    async def each(self, take: Callable[[bytes | bytearray], None]) -> NoReturn:
        """Calls `take` with every message, as soon as it is here and with no task in between.

        Until the connection ends, which raises LinkClosed, or `take` raises; as that does.
        """

    async def send(self, data: bytes | memoryview) -> None:
        """Written at once and in order; returns when the network takes more. Raises LinkClosed.

        The memory must not be written to afterwards.
        """

    async def close(self, reason: str, code: int = 1000) -> None:
        """Like a channel's; `code` is a websocket's."""

    def abort(self, reason: str) -> None:
        """Ends the connection without a word to the other side."""


class Routes(Protocol):
    """A device's door, for lines."""

    def route(
        self,
        name: str,
        handler: Callable[[Line], Awaitable[None]],
        *,
        max_bytes: int,
        admit: Callable[[PeerId], bool] = ...,
        direct: Literal[True],
    ) -> None:
        """`handler` runs in a task per line, which is closed when it returns. Whoever dialled
        speaks first.
        """


class Dials(Protocol):
    """The way out, for lines."""

    async def dial(
        self,
        address: Address,
        route: str,
        *,
        max_bytes: int,
        direct: Literal[True],
    ) -> Line:
        """This side speaks first.

        Raises DialRefused, DialTimeout, NotOfThisMesh, VersionMismatch or LinkClosed.
        """
