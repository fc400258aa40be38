"""A home network in memory: every message may be lost, late, twice or out of order, by name.

What it models of TCP: a crash closes the connections of a process (its kernel does that) and its
port then refuses; a power cut closes nothing; a host that came back resets what it does not know;
a lost SYN is sent again after 1 and 3 s. What it makes worse than TCP: a message lost under `drop`
or a cut is lost for good, though its connection lives on.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from apps.sim.clock import NOBODY, virtual_loop
from mesh.errors import DialRefused, DialTimeout, LinkClosed
from mesh.ids import Address, PeerId
from mesh.transport import Accept

PORT = 8478
SYN_AGAIN_S = (0.0, 1.0, 3.0)
ORDER_S = 1e-7  # between two messages of one connection: timers of one moment have no order
FAST_S = (0.0002, 0.002)  # one way, wired


@dataclass(slots=True)
class Wire:
    """One direction between two devices."""

    cut: bool = False
    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = FAST_S
    reorder: bool = False


class Network:
    """`wires[a, b]` carries from a to b; hosts are named like their devices."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.wires: dict[tuple[str, str], Wire] = {}
        self.hosts: dict[str, Host] = {}
        self.messages = 0

    def wire(self, source: str, target: str) -> Wire:
        return self.wires.setdefault((source, target), Wire())

    def heal(self) -> None:
        self.wires.clear()

    def cut(self, *groups: set[str]) -> None:
        """Nothing passes between different groups."""
        for group in groups:
            for other in groups:
                if group is not other:
                    for source in group:
                        for target in other:
                            self.wire(source, target).cut = True

    def passes(self, source: str, target: str) -> bool:
        wire = self.wire(source, target)
        return not wire.cut and self.hosts[target].powered

    def boot(self, name: str, peer: PeerId) -> SimTransport:
        """A new process on host `name`, with nothing of an earlier one."""
        host = self.hosts.setdefault(name, Host(name))
        host.powered = True
        host.transport = SimTransport(self, host, peer)
        return host.transport

    def crash(self, name: str) -> None:
        """kill -9: the kernel closes what the process had open."""
        transport = self.hosts[name].transport
        if transport is not None:
            transport.kill()

    def power_off(self, name: str) -> None:
        """Nothing is closed, nothing answers."""
        host = self.hosts[name]
        host.powered = False
        if host.transport is not None:
            host.transport.vanish()

    def later(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        virtual_loop().call_later(delay_s, action, *args, context=NOBODY)


class Host:
    def __init__(self, name: str) -> None:
        self.name = name
        self.powered = True
        self.transport: SimTransport | None = None


class SimTransport:
    """One process's door. Its port is its host's, the same over restarts."""

    def __init__(self, network: Network, host: Host, peer: PeerId) -> None:
        self.network = network
        self.host = host
        self.peer = peer
        self.listening = False
        self.ends: set[End] = set()
        self._accept: Accept | None = None
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> Address:
        return Address(self.host.name, PORT)

    async def listen(self, accept: Accept) -> Address:
        self._accept = accept
        self._context = contextvars.copy_context()
        self.listening = True
        return self.address

    async def dial(self, address: Address) -> End:
        loop = virtual_loop()
        answer: asyncio.Future[End] = loop.create_future()
        for after_s in SYN_AGAIN_S:
            self.network.later(after_s, self._knock, address, answer)
        try:
            async with asyncio.timeout(SYN_AGAIN_S[-1] + 0.5):
                return await answer
        except TimeoutError:
            raise DialTimeout(f"nobody answered at {address}") from None

    async def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.listening = False
        for end in tuple(self.ends):
            end.shut("the process ended")

    def vanish(self) -> None:
        self.listening = False
        for end in tuple(self.ends):
            end.open = False
        self.ends.clear()

    def _knock(self, address: Address, answer: asyncio.Future[End]) -> None:
        network, here, there = self.network, self.host.name, address.host
        if answer.done() or there not in network.hosts or not network.passes(here, there):
            return
        if network.rng.random() < network.wire(here, there).drop:
            return
        there_delay_s = network.rng.uniform(*network.wire(here, there).delay_s)
        back_delay_s = network.rng.uniform(*network.wire(there, here).delay_s)
        if not network.passes(there, here):
            return
        target = network.hosts[there].transport
        if target is None or not target.listening or address.port != target.address.port:
            refused = DialRefused(f"nobody listens at {address}")
            network.later(there_delay_s + back_delay_s, _settle, answer, refused)
        elif not virtual_loop().is_stopped(there):  # a stopped process shakes no hands
            network.later(there_delay_s, self._meet, target, address, answer, back_delay_s)

    def _meet(
        self, target: SimTransport, address: Address, answer: asyncio.Future[End], back_s: float
    ) -> None:
        if answer.done() or not target.listening:
            return
        near = End(self, target.peer, address, dialled=True)
        far = End(target, self.peer, Address(self.host.name, 40000), dialled=False)
        near.other, far.other = far, near
        target.enter(far)
        self.network.later(back_s, _settle, answer, near)

    def enter(self, end: End) -> None:
        assert self._accept is not None, "it listens"
        task = virtual_loop().create_task(_met(self._accept, end), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class End:
    """One end of a connection: a `Channel`."""

    def __init__(
        self, transport: SimTransport, peer: PeerId, remote: Address, *, dialled: bool
    ) -> None:
        self.transport = transport
        self.peer = peer
        self.remote = remote
        self.dialled = dialled
        self.open = True
        self.other: End = self
        self._inbox: deque[bytes | LinkClosed] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._last_arrival_s = 0.0
        transport.ends.add(self)

    async def send(self, data: bytes) -> None:
        if not self.open:
            raise LinkClosed("this end is closed")
        network = self.transport.network
        network.messages += 1
        here, there = self.transport.host.name, self.other.transport.host.name
        wire = network.wire(here, there)
        if not network.passes(here, there) or network.rng.random() < wire.drop:
            return
        for _ in range(2 if network.rng.random() < wire.duplicate else 1):
            arrival_s = virtual_loop().time() + network.rng.uniform(*wire.delay_s)
            if not wire.reorder:
                arrival_s = max(arrival_s, self._last_arrival_s + ORDER_S)
                self._last_arrival_s = arrival_s
            virtual_loop().call_at(arrival_s, self.other._arrive, data, context=NOBODY)

    async def receive(self) -> bytes:
        while not self._inbox:
            self._waiter = virtual_loop().create_future()
            await self._waiter
        first = self._inbox[0]
        if isinstance(first, LinkClosed):
            raise LinkClosed(str(first))
        self._inbox.popleft()
        return first

    async def close(self, reason: str) -> None:
        self.shut(reason)

    def shut(self, reason: str) -> None:
        """Closes this end; the other learns of it as soon as a FIN gets through."""
        if self.open:
            self._end(reason)
            self._finish(0)

    def _finish(self, attempt: int) -> None:
        network = self.transport.network
        here, there = self.transport.host.name, self.other.transport.host.name
        if not self.transport.host.powered or not self.other.open or attempt >= 6:
            return
        if network.passes(here, there):
            delay_s = network.rng.uniform(*network.wire(here, there).delay_s)
            arrival_s = max(virtual_loop().time() + delay_s, self._last_arrival_s + ORDER_S)
            reason = "the other side closed"
            virtual_loop().call_at(arrival_s, self.other._end, reason, context=NOBODY)
        else:
            network.later(0.5 * 2**attempt, self._finish, attempt + 1)

    def _arrive(self, data: bytes) -> None:
        if self.open:
            self._put(data)
        elif self.transport.host.powered:  # nobody knows this connection here: a reset
            network = self.transport.network
            if network.passes(self.transport.host.name, self.other.transport.host.name):
                network.later(FAST_S[1], self.other._end, "reset by the other side")

    def _end(self, reason: str) -> None:
        if self.open:
            self.open = False
            self.transport.ends.discard(self)
            self._put(LinkClosed(reason))

    def _put(self, item: bytes | LinkClosed) -> None:
        self._inbox.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _met(accept: Accept, end: End) -> None:
    await accept(end)


def _settle(answer: asyncio.Future[End], result: End | Exception) -> None:
    if answer.done():
        if isinstance(result, End):
            result.shut("nobody waits for it any more")
    elif isinstance(result, End):
        answer.set_result(result)
    else:
        answer.set_exception(result)
