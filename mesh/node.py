"""The process's end of the mesh: what comes from links, from time and from people goes to `core`;
`hands` carry out what that decides.

Time is the running loop's and nothing else, so the same node runs in a simulated home.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mesh.control_link import ControlLink
from mesh.control_links import ControlLinks, reachable
from mesh.core import Core
from mesh.door import Door
from mesh.errors import LinkClosed, NoLeader
from mesh.events import Event, LinkDown, LinkUp, Refused
from mesh.hands import Hands
from mesh.hints import Hints
from mesh.ids import Address, Epoch, PeerId
from mesh.inbox import Inbox
from mesh.limits import BEAT_INTERVAL_S, LEAVE_TIMEOUT_S, TICK_S
from mesh.membership import View
from mesh.messages import Leave, Message
from mesh.nursery import Nursery
from mesh.requests import NoticeHandler, RequestHandler, Requests
from mesh.state_store import KnownPeer, StateStore
from mesh.subscribers import Subscribers
from mesh.transport import Transport

_log = logging.getLogger(__name__)


class _Left(Exception):
    """Ends the run of a node that said goodbye."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How this device takes part."""

    merit: float = 0.5  # 0..1: fitness to lead (mains power, memory, uptime); at 1 half the wait


class Node:
    """One device's place in the mesh. Register handlers and subscribers, then `run` it once."""

    def __init__(
        self,
        me: PeerId,
        name: str,
        transport: Transport,
        store: StateStore,
        rng: random.Random,
        settings: NodeSettings = NodeSettings(),  # noqa: B008 (a frozen value)
    ) -> None:
        """Reads the store; raises ConfigError if what it holds cannot be trusted."""
        self._me = me
        self._core = Core(me, name, store, rng.random, settings.merit)
        self._nursery = Nursery()
        self._links = ControlLinks(
            me,
            self._nursery,
            self._core.hello,
            self._core.refusal,
            self._link_up,
            self._take,
            self._link_down,
            self._link_parked,
            self._link_retired,
        )
        self._door = Door(transport, self._links, self._nursery, self._refused, self._stranger)
        self._hints = Hints(me, rng, self._nursery, self._door.attempt, self._links.has)
        self._requests = Requests(me, self._send)
        self._subscribers = Subscribers()
        self._hands = Hands(self._core, self._links, self._hints, self._requests, self._subscribers)
        self._inbox = Inbox(
            self._core, self._requests, self._hints, self._links, self._nursery, self._hands.uses
        )
        self._early_hints: list[tuple[Address, PeerId | None]] = []
        self._is_stuck: Callable[[], bool] = lambda: False
        self._started = asyncio.Event()
        self._left = asyncio.Event()
        self._address: Address | None = None

    @property
    def view(self) -> View:
        return self._core.view

    @property
    def known_peers(self) -> tuple[KnownPeer, ...]:
        """Everybody it has met and where, also in earlier runs."""
        return self._core.known_peers

    @property
    def is_crowd(self) -> bool:
        """Whether there are too many devices for links with all of them."""
        return self._core.is_crowd

    async def run(self) -> None:
        """Takes part until cancelled, or until `leave`. Raises ConfigError if it cannot start."""
        try:
            self._address = await self._door.listen()
            self._hints.is_own(self._address)
            self._core.start(self._now_s, self._address)
            async with asyncio.TaskGroup() as tasks:
                self._nursery.open(tasks)
                self._door.open()
                self._started.set()
                hinted = ((known.address, known.peer) for known in self._core.known_peers)
                for address, peer in (*hinted, *self._early_hints):
                    self.hint(address, peer)
                self._hands.carry_out()
                tasks.create_task(self._pulse())
                tasks.create_task(self._end())
        except* _Left:
            pass
        finally:
            self._nursery.close()
            self._hands.close()
            self._requests.fail_all("this node stopped")
            await self._door.close()

    async def started(self) -> Address:
        """Waits until the node listens; the address."""
        await self._started.wait()
        assert self._address is not None, "set before the event"
        return self._address

    def hint(self, address: Address, peer: PeerId | None = None) -> None:
        """A device may be listening there; it is dialled until it is linked, politely."""
        if not self._started.is_set():
            self._early_hints.append((address, peer))
        elif peer is None or not (self._core.is_crowd and self.view.is_here(peer)):
            self._hints.add(address, peer, self._now_s)

    async def leave(self) -> None:
        """Says goodbye to everybody, waits at most LEAVE_TIMEOUT_S for it, and ends `run`."""
        me = self.view.find(self._me)
        assert me is not None, "a view holds its own device"
        self._hands.tell(None, Leave(me.incarnation))
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                for link in self._links.all:
                    await link.drain()
        self._left.set()

    def advance_epoch(self, reason: str) -> Epoch:
        """The leader's next epoch, for instance for a new plan; raises NoLeader elsewhere."""
        epoch = self._core.advance_epoch(self._now_s, reason)
        self._hands.carry_out()
        if epoch is None:
            raise NoLeader("this device does not lead, or its disk refused to remember the epoch")
        return epoch

    def on_request(self, topic: str, handler: RequestHandler) -> None:
        """A PotluckError that the handler raises is answered in its words."""
        self._requests.on_request(topic, handler)

    def on_notice(self, topic: str, handler: NoticeHandler) -> None:
        self._requests.on_notice(topic, handler)

    async def request(self, peer: PeerId, topic: str, body: Any, timeout_s: float) -> Any:
        """The answer. Raises RequestFailed (in the peer's words), LinkClosed or DialTimeout."""
        return await self._requests.ask(peer, topic, body, timeout_s)

    async def notify(self, peer: PeerId, topic: str, body: Any) -> None:
        """Raises LinkClosed; whether it arrives, nobody tells."""
        await self._requests.tell(peer, topic, body)

    def watch_progress(self, is_stuck: Callable[[], bool]) -> None:
        """`is_stuck` is asked before each beat; the others plan without a device that is."""
        self._is_stuck = is_stuck

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Called with every event, in order, in the loop; the returned function ends it."""
        return self._subscribers.add(callback)

    async def wait_for(self, predicate: Callable[[View], bool], timeout_s: float | None) -> View:
        """The first view that fits, this one included; None waits for ever; raises TimeoutError."""
        changed = asyncio.Event()
        unsubscribe = self.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self.view):
                    changed.clear()
                    await changed.wait()
        finally:
            unsubscribe()
        return self.view

    # --- time ------------------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _end(self) -> None:
        await self._left.wait()
        raise _Left  # the way to end a TaskGroup from within

    async def _pulse(self) -> None:
        """Ticks each TICK_S, beats each BEAT_INTERVAL_S, and notices when it was kept from it."""
        due_s = beat_s = self._now_s
        while True:
            due_s += TICK_S
            await asyncio.sleep(due_s - self._now_s)
            now_s = self._now_s
            self._core.is_stuck = self._is_stuck()
            self._core.tick(now_s, now_s - due_s)
            self._hands.carry_out()
            if now_s >= beat_s:
                self._hands.send_beats()
                self._hands.park_links()
                beat_s = now_s + BEAT_INTERVAL_S - TICK_S / 2
            due_s = max(due_s, now_s - TICK_S)

    # --- links -----------------------------------------------------------------------------------

    def _refused(self, address: Address) -> None:
        self._core.refused(address, self._now_s)
        self._hands.carry_out()

    def _stranger(self, address: Address, reason: str) -> None:
        self._subscribers.tell(Refused(self._now_s, reason, address))

    def _link_up(self, link: ControlLink, is_new: bool) -> None:
        if is_new:
            self._subscribers.tell(LinkUp(self._now_s, f"greeted {link.hello.name}", link.peer))
        self._core.take_hello(link.hello, reachable(link), self._now_s)
        self._inbox.learn(link.hello.sightings, self._now_s)
        self._hands.carry_out()

    def _link_down(self, peer: PeerId, reason: str) -> None:
        self._subscribers.tell(LinkDown(self._now_s, reason, peer))
        self._core.link_lost(peer, reason, self._now_s)
        self._hands.look_for(peer)
        # What was asked may be lost with the link; whoever asked knows best whether to ask again.
        self._requests.fail(peer, f"{peer.short}: {reason}")
        self._hands.carry_out()

    def _link_parked(self, peer: PeerId) -> None:
        """By one of its two ends, and neither misses it."""
        self._subscribers.tell(LinkDown(self._now_s, "it was of no use", peer))
        self._core.parked(peer)
        self._requests.fail(peer, f"{peer.short}: the link was parked")
        self._hands.carry_out()

    def _link_retired(self, peer: PeerId) -> None:
        """What was asked on it and has no answer yet may never have arrived there."""
        current = self._links.find(peer)
        if current is not None:
            reason = f"{peer.short}: the link was replaced; ask again"
            self._requests.fail(peer, reason, before_s=current.since_s)

    def _take(self, link: ControlLink, message: Message) -> None:
        self._inbox.take(link, message, self._now_s)
        self._hands.carry_out()

    async def _send(self, peer: PeerId, data: bytes) -> None:
        """Brings a request or notice to its link; raises LinkClosed if the peer is gone."""
        if not self.view.is_here(peer):
            raise LinkClosed(f"{peer.short} is not here")
        self._core.needs(peer, self._now_s)
        self._hands.carry_out()
        link = await self._links.wait(peer)
        await link.send(data)
