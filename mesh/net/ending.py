"""What every websocket of ours has: who is at its other end, and how it ends, in words."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from mesh.errors import LinkClosed
from mesh.ids import Address, PeerId


class BadMessage(LinkClosed):
    """The other side sent what no version of ours would send, so the link was closed."""


class Ending:
    """One connection to one peer, until either side has closed it or it broke."""

    def __init__(
        self, peer: PeerId, remote: Address, sock: socket.socket | None, *, dialled: bool
    ) -> None:
        self._peer = peer
        self._remote = remote
        self._socket = sock
        self._dialled = dialled
        self._closed = asyncio.Event()
        self._reason = ""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by its certificate."""
        return self._peer

    @property
    def remote(self) -> Address:
        """Where the other end is; its listening port only if this side dialled."""
        return self._remote

    @property
    def dialled(self) -> bool:
        """True on the side that opened the connection."""
        return self._dialled

    def abort(self, reason: str) -> None:
        """Ends the connection without a word to the other side."""
        self._end(reason)
        self._cut()

    async def wait_closed(self) -> str:
        """Returns, with the reason, when either side has closed or the connection broke."""
        await self._closed.wait()
        return self._reason

    def _end(self, reason: str) -> None:
        if not self._closed.is_set():
            self._reason = reason
            self._closed.set()

    def _in_words(self) -> str:
        return f"link with {self._peer.short} at {self._remote}: {self._reason}"

    def _ended(self) -> LinkClosed:
        return LinkClosed(self._in_words())

    def _cut(self) -> None:
        """Whatever still waits on a peer that will not read again is freed by this."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
