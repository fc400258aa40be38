"""A connection in memory, as seen from its two ends.

It is a stream as TCP makes one: what is lost under `drop` or a cut is sent again, later and later,
and all that was sent after it waits. Where devices only meet, control channels are worse than that:
a message may be lost for good though its connection lives on, come twice, or out of order. Nobody
may lead twice then either; but questions would wait for ever, which TCP does not do to them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from apps.sim.clock import NOBODY, virtual_loop
from apps.sim.network import FAST_S, Door
from mesh.errors import LinkClosed
from mesh.ids import Address, PeerId

ORDER_S = 1e-7  # between two messages of one connection: timers of one moment have no order
RESEND_S = 0.2  # TCP's first time-out; each next one is twice as long
RESEND_MAX_S = 3.2


class End:
    """One end of a connection: a `Channel`, and on a route a `Line`."""

    def __init__(
        self,
        door: Door,
        peer: PeerId,
        remote: Address,
        *,
        dialled: bool,
        is_stream: bool,
    ) -> None:
        self.door = door
        self.peer = peer
        self.remote = remote
        self.dialled = dialled
        self.open = True
        self.other: End = self
        self._is_stream = is_stream
        self._inbox: deque[bytes | LinkClosed] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_arrival_s = 0.0
        self._unsent: deque[bytes] = deque()  # of a stream: what TCP has yet to bring over
        self._resends = 0
        door.enter(self)

    @property
    def _here(self) -> str:
        return self.door.host.name

    @property
    def _there(self) -> str:
        return self.other.door.host.name

    @property
    def is_free(self) -> bool:
        return True

    async def send(self, data: bytes | memoryview) -> None:
        self.write(data)

    def write(self, data: bytes | memoryview) -> None:
        if not self.open:
            raise LinkClosed("this end is closed")
        network = self.door.network
        network.messages += 1
        if self._is_stream:
            self._unsent.append(bytes(data))
            if len(self._unsent) == 1:
                self._push()
            return
        wire = network.wire(self._here, self._there)
        passes = network.passes(self._here, self._there)
        if not passes or network.loses(self._here, self._there):
            return
        for _ in range(2 if network.rng.random() < wire.duplicate else 1):
            self._deliver(bytes(data), in_order=not wire.reorder)

    async def receive(self) -> bytes:
        while not self._inbox:
            self._waiter = virtual_loop().create_future()
            await self._waiter
        first = self._inbox[0]
        if isinstance(first, LinkClosed):
            raise LinkClosed(str(first))
        self._inbox.popleft()
        return first

    async def each(self, take: Callable[[bytes | bytearray], None]) -> NoReturn:
        while True:
            take(await self.receive())

    async def close(self, reason: str, code: int = 1000) -> None:
        self.shut(reason)

    def abort(self, reason: str) -> None:
        self._unsent.clear()
        self.shut(reason)

    def shut(self, reason: str) -> None:
        """Closes this end; the other learns of it as soon as a FIN gets through."""
        if self.open:
            self._end(reason)
            self._finish(0)

    def cut_off(self) -> None:
        """The machine has no power any more: nobody is told."""
        self.open = False
        self._unsent.clear()

    def _push(self) -> None:
        """Brings over what waits, the oldest first, or tries again later."""
        network = self.door.network
        while self._unsent and self.door.host.powered:
            passes = network.passes(self._here, self._there)
            if not passes or network.loses(self._here, self._there):
                pause_s = min(RESEND_S * 2**self._resends, RESEND_MAX_S)
                self._resends += 1
                network.later(pause_s, self._push)
                return
            self._resends = 0
            self._deliver(self._unsent.popleft(), in_order=True)

    def _deliver(self, data: bytes, *, in_order: bool) -> None:
        now_s = virtual_loop().time()
        arrival_s = now_s + self.door.network.delay_s(self._here, self._there)
        if in_order:
            arrival_s = max(arrival_s, self._last_arrival_s + ORDER_S)
            self._last_arrival_s = arrival_s
        virtual_loop().call_at(arrival_s, self.other._arrive, data, context=NOBODY)

    def _finish(self, attempt: int) -> None:
        network = self.door.network
        if not self.door.host.powered or not self.other.open or attempt >= 6:
            return
        if network.passes(self._here, self._there) and not self._unsent:
            delay_s = network.delay_s(self._here, self._there)
            arrival_s = max(virtual_loop().time() + delay_s, self._last_arrival_s + ORDER_S)
            reason = "the other side closed"
            virtual_loop().call_at(arrival_s, self.other._end, reason, context=NOBODY)
        else:
            network.later(0.5 * 2**attempt, self._finish, attempt + 1)

    def _arrive(self, data: bytes) -> None:
        if self.open:
            self._put(data)
        elif self.door.host.powered and self.door.network.passes(
            self._here, self._there
        ):  # nobody knows this connection here
            self.door.network.later(FAST_S[1], self.other._end, "reset by the other side")

    def _end(self, reason: str) -> None:
        if self.open:
            self.open = False
            self.door.left(self)
            self._put(LinkClosed(reason))

    def _put(self, item: bytes | LinkClosed) -> None:
        self._inbox.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
