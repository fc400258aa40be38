"""A process's door to the network in memory: where it listens, and how it calls the others.

For control channels it is a `Transport`, for lines both `Routes` and `Dials`. Everybody in the home
is of the same mesh: who may speak at all is not simulated.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from apps.sim.clock import virtual_loop
from apps.sim.connection import End
from apps.sim.network import Door, Host, Network
from mesh.errors import DialRefused, DialTimeout, LinkClosed
from mesh.ids import Address, PeerId
from mesh.transport import Accept

PORT = 8478
SYN_AGAIN_S = (0.0, 1.0, 3.0)
CONTROL: Final = "control"


@dataclass(frozen=True, slots=True)
class _Route:
    handler: Callable[[Any], Awaitable[None]]
    admit: Callable[[PeerId], bool]
    is_line: bool  # closed when its handler returns


class SimTransport:
    """Of a new process on a host, with nothing of an earlier one."""

    def __init__(self, network: Network, host: Host, peer: PeerId) -> None:
        self.network = network
        self.host = host
        self.peer = peer
        self.listening = False
        self.ends: dict[End, None] = {}  # in the order in which they came
        self._routes: dict[str, _Route] = {}
        self._context = contextvars.copy_context()
        self._tasks: dict[asyncio.Task[None], None] = {}

    @classmethod
    def boot(cls, network: Network, name: str, peer: PeerId) -> SimTransport:
        host = network.host(name)
        host.powered = True
        host.door = transport = cls(network, host, peer)
        return transport

    @property
    def address(self) -> Address:
        return Address(self.host.name, PORT)

    def route(
        self,
        name: str,
        handler: Callable[[Any], Awaitable[None]],
        *,
        max_bytes: int,
        admit: Callable[[PeerId], bool] = lambda peer: True,
        direct: bool = False,
    ) -> None:
        self._routes[name] = _Route(handler, admit, is_line=True)

    async def listen(self, accept: Accept) -> Address:
        self._routes[CONTROL] = _Route(accept, lambda peer: True, is_line=False)
        self._context = contextvars.copy_context()
        self.listening = True
        return self.address

    async def dial(
        self,
        address: Address,
        route: str = CONTROL,
        *,
        max_bytes: int = 0,
        direct: bool = False,
    ) -> End:
        answer: asyncio.Future[End] = virtual_loop().create_future()
        for after_s in SYN_AGAIN_S:
            self.network.later(after_s, self._knock, address, route, answer)
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
            end.cut_off()
        self.ends.clear()

    def enter(self, end: End) -> None:
        self.ends[end] = None

    def left(self, end: End) -> None:
        self.ends.pop(end, None)

    def _knock(
        self,
        address: Address,
        route: str,
        answer: asyncio.Future[End],
    ) -> None:
        network, here, there = self.network, self.host.name, address.host
        if answer.done() or there not in network.hosts or not network.passes(here, there):
            return
        if network.loses(here, there):
            return
        there_delay_s, back_s = network.delay_s(here, there), network.delay_s(there, here)
        if not network.passes(there, here):
            return
        target = network.hosts[there].door
        if target is None or not target.listening or address.port != target.address.port:
            refused = DialRefused(f"nobody listens at {address}")
            network.later(there_delay_s + back_s, _settle, answer, refused)
        elif not virtual_loop().is_stopped(there):  # a stopped process shakes no hands
            network.later(there_delay_s, self._meet, target, route, answer, back_s)

    def _meet(
        self,
        target: Door,
        route: str,
        answer: asyncio.Future[End],
        back_s: float,
    ) -> None:
        if answer.done() or not target.listening:
            return
        if not target.admits(route, self.peer):
            why = f"{target.address} refused the link: it does not know the caller yet"
            self.network.later(back_s, _settle, answer, LinkClosed(why))
            return
        is_stream = route != CONTROL or not self.network.loses_for_good
        near = End(self, target.peer, target.address, dialled=True, is_stream=is_stream)
        from_here = Address(self.host.name, 40000)
        far = End(target, self.peer, from_here, dialled=False, is_stream=is_stream)
        near.other, far.other = far, near
        target.serve(route, far)
        self.network.later(back_s, _settle, answer, near)

    def admits(self, route: str, peer: PeerId) -> bool:
        return route in self._routes and self._routes[route].admit(peer)

    def serve(self, route: str, end: End) -> None:
        handling = _handled(self._routes[route], end)
        task = virtual_loop().create_task(handling, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task))


async def _handled(route: _Route, end: End) -> None:
    try:
        await route.handler(end)
    finally:
        if route.is_line:
            end.shut("done")


def _settle(answer: asyncio.Future[End], result: End | Exception) -> None:
    if answer.done():
        if isinstance(result, End):
            result.shut("nobody waits for it any more")
    elif isinstance(result, End):
        answer.set_result(result)
    else:
        answer.set_exception(result)
