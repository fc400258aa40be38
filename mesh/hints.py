"""Where devices may be listening, and when to dial there: each address until its device is linked.

A hint is only a hint: who is really there, the handshake proves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from mesh.ids import Address, PeerId
from mesh.limits import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    BACKOFF_RECENT_S,
    DIAL_TIMEOUT_S,
    MAX_CANDIDATES,
    MAX_DIALS_AT_ONCE,
    MAX_DIALS_PER_S,
    RECENT_S,
    REDIAL_TIMEOUT_S,
)
from mesh.nursery import Nursery

PATIENT_EVERY = 4  # of the quick tries to an address that worked before, each so-manieth is patient


@dataclass(slots=True, eq=False)
class Target:
    """One address, and who answered there last."""

    address: Address
    peer: PeerId | None
    fresh_s: float  # when it last was hinted or linked
    works: bool = False  # it was linked before
    failures: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def patience_s(self) -> float:
        """For the dial, and again for the greeting. A peer behind a healed cut answers quickly."""
        quick = self.works and self.failures % PATIENT_EVERY != PATIENT_EVERY - 1
        return REDIAL_TIMEOUT_S if quick else DIAL_TIMEOUT_S

    def backoff_s(self, now_s: float) -> float:
        recent = self.peer is not None and now_s - self.fresh_s <= RECENT_S
        longest = BACKOFF_RECENT_S if recent else BACKOFF_MAX_S
        return min(longest, BACKOFF_MIN_S * 2.0 ** min(self.failures, 10))


@dataclass(slots=True)
class Ration:
    """Dials to addresses that nobody vouches for: so many at once, then so many a second."""

    _free_s: float = -MAX_DIALS_AT_ONCE / MAX_DIALS_PER_S  # when the next one is due, without haste

    def wait_s(self, now_s: float) -> float:
        """Takes a place in the queue; how long until its turn."""
        earliest_s = now_s - MAX_DIALS_AT_ONCE / MAX_DIALS_PER_S
        self._free_s = max(self._free_s, earliest_s) + 1 / MAX_DIALS_PER_S
        return max(0.0, self._free_s - now_s)


Attempt = Callable[[Target], Coroutine[Any, Any, bool]]


class Hints:
    """One task per address. `attempt` dials, and holds the link, if there is one, to its end."""

    def __init__(
        self,
        me: PeerId,
        rng: random.Random,
        nursery: Nursery,
        attempt: Attempt,
        is_linked: Callable[[PeerId], bool],
    ) -> None:
        self._me = me
        self._rng = rng
        self._nursery = nursery
        self._attempt = attempt
        self._is_linked = is_linked
        self._targets: dict[Address, Target] = {}
        self._own: set[Address] = set()
        self._dialling: set[PeerId] = set()
        self._ration = Ration()

    def add(self, address: Address, peer: PeerId | None, now_s: float) -> None:
        """Somebody may be at `address`. A hint that is news makes the next try come at once."""
        if address in self._own or (peer is not None and self._is_linked(peer)):
            return
        target = self._targets.get(address)
        if target is None:
            self._add(Target(address, peer, now_s))
            return
        target.peer = peer or target.peer
        if now_s - target.fresh_s >= BACKOFF_RECENT_S:  # repeated hints must not become a hammer
            target.fresh_s = now_s
            target.failures = 0
            target.wake.set()

    def lost(self, peer: PeerId, now_s: float) -> None:
        """The link to `peer` broke: look at once what became of it."""
        for target in self._targets.values():
            if target.peer == peer:
                target.fresh_s = now_s
                target.failures = 0
                target.wake.set()

    def release(self, peer: PeerId) -> None:
        """`peer` is dialled no more; a link with it lives on."""
        for address, target in list(self._targets.items()):
            if target.peer == peer:
                del self._targets[address]
                target.wake.set()

    def is_own(self, address: Address) -> None:
        """Never dial `address` again: it is this device."""
        self._own.add(address)
        self._drop(address)

    def _add(self, target: Target) -> None:
        if len(self._targets) >= MAX_CANDIDATES and not self._evict():
            return
        self._targets[target.address] = target
        target.task = self._nursery.start(self._pursue(target))

    def _evict(self) -> bool:
        """Gives up the unlinked address that was longest without a hint."""
        idle = [t for t in self._targets.values() if t.peer is None or not self._is_linked(t.peer)]
        if idle:
            self._drop(min(idle, key=lambda target: target.fresh_s).address)
        return bool(idle)

    def _drop(self, address: Address) -> None:
        target = self._targets.pop(address, None)
        task = target.task if target is not None else None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _pursue(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        while self._targets.get(target.address) is target:
            target.wake.clear()
            if target.peer is not None and self._is_linked(target.peer):
                await target.wake.wait()
                continue
            if not target.works:  # anybody may have announced it
                await asyncio.sleep(self._ration.wait_s(loop.time()))
            if target.peer is None or target.peer not in self._dialling:
                await self._try(target)
            pause_s = target.backoff_s(loop.time()) * self._rng.uniform(0.5, 1.0)
            await _wait(target.wake, pause_s)

    async def _try(self, target: Target) -> None:
        dialling = target.peer
        if dialling is not None:
            self._dialling.add(dialling)
        try:
            linked = await self._attempt(target)
        finally:
            if dialling is not None:
                self._dialling.discard(dialling)
        if target.peer == self._me:
            self.is_own(target.address)
        if linked:
            target.works, target.failures = True, 0
            target.fresh_s = asyncio.get_running_loop().time()
        else:
            target.failures += 1


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass  # nobody woke us: the pause is simply over
