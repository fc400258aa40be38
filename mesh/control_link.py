"""The control link to one peer: what waits to be sent on it, and which of two links counts.

The mesh's own messages overtake the requests of the packages above, and of the beats only the
newest waits: a peer that reads slowly delays nobody else, and never finds old beats queued up.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mesh.errors import LinkClosed
from mesh.ids import PeerId
from mesh.limits import DUPLICATE_WINDOW_S, MAX_OUTBOX_MESSAGES, RETIRE_GRACE_S
from mesh.messages import Hello
from mesh.transport import Channel


class ControlLink:
    """One greeted channel and its outbox."""

    def __init__(self, channel: Channel, hello: Hello, since_s: float) -> None:
        self.channel = channel
        self.hello = hello
        self.since_s = since_s
        self.incarnation = hello.incarnation  # grows when the peer refutes
        self.closed = False
        self._parked_s: float | None = None  # when this end asked for its end
        self._beat: bytes | None = None
        self._urgent: deque[bytes] = deque(maxlen=MAX_OUTBOX_MESSAGES)
        self._bulk: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def peer(self) -> PeerId:
        return self.hello.peer

    def post(self, data: bytes) -> None:
        """A message of the mesh itself: never waits, the oldest is dropped when full."""
        self._urgent.append(data)
        self._drained.clear()
        self._filled.set()

    def post_beat(self, data: bytes) -> None:
        self._beat = data
        self._filled.set()

    async def send(self, data: bytes) -> None:
        """Waits for room in the outbox; raises LinkClosed once the link is closed."""
        while len(self._bulk) >= MAX_OUTBOX_MESSAGES and not self.closed:
            self._room.clear()
            await self._room.wait()
        if self.closed:
            raise LinkClosed(f"the link to {self.hello.name} was closed")
        self._bulk.append(data)
        self._filled.set()

    def park(self, now_s: float) -> None:
        """The other end is asked to close this link: for a moment, its end is no loss."""
        self._parked_s = now_s

    def is_parked(self, now_s: float) -> bool:
        return self._parked_s is not None and now_s - self._parked_s <= RETIRE_GRACE_S

    async def drain(self) -> None:
        """Returns when all that was posted is sent, or the link is closed."""
        await self._drained.wait()

    async def write(self) -> None:
        """Sends what is posted, for ever; returns when the channel breaks (its reader tells)."""
        try:
            while True:
                data = self._take()
                if data is None:
                    self._filled.clear()
                    self._drained.set()
                    await self._filled.wait()
                else:
                    await self.channel.send(data)
        except LinkClosed as error:
            await self.close(str(error))

    async def close(self, reason: str) -> None:
        self.closed = True
        self._room.set()
        self._drained.set()
        await self.channel.close(reason)

    def _take(self) -> bytes | None:
        if self._urgent:
            return self._urgent.popleft()
        if self._beat is not None:
            beat, self._beat = self._beat, None
            return beat
        if self._bulk:
            self._room.set()
            return self._bulk.popleft()
        return None


def replaces(new: ControlLink, old: ControlLink, me: PeerId) -> bool:
    """Whether `new` should take the place of `old`, a living link with the same peer.

    Links that crossed are told apart by who dialled, so that both ends keep the same one. A much
    younger link means that the peer had lost the old one, or it would not have dialled.
    """
    if new.incarnation != old.incarnation:
        return new.incarnation > old.incarnation
    if new.since_s - old.since_s > DUPLICATE_WINDOW_S or new.channel.dialled == old.channel.dialled:
        return True
    return new.channel.dialled == (me < new.peer)
