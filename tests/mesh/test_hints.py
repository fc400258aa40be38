"""Whom a device dials, and how often, when anybody may announce anything."""

from __future__ import annotations

import asyncio
import random

from apps.sim.clock import run_virtual
from mesh.hints import Hints, Target
from mesh.ids import Address, PeerId
from mesh.limits import MAX_CANDIDATES, MAX_DIALS_AT_ONCE, MAX_DIALS_PER_S
from mesh.nursery import Nursery

ME = PeerId("a" * 64)
FLOOD_S = 60


def test_a_thousand_announced_addresses_are_dialled_at_a_measured_pace() -> None:
    """Reliability test 22: and no more of them than the cap are kept."""
    assert run_virtual(flooded()) <= MAX_DIALS_AT_ONCE + MAX_DIALS_PER_S * FLOOD_S


async def flooded() -> int:
    dialled: list[Address] = []

    async def attempt(target: Target) -> bool:
        dialled.append(target.address)
        await asyncio.sleep(0.1)
        return False

    async with asyncio.TaskGroup() as tasks:
        nursery = Nursery()
        nursery.open(tasks)
        hints = Hints(ME, random.Random(1), nursery, attempt, lambda peer: False)
        now_s = asyncio.get_running_loop().time
        for number in range(1000):
            hints.add(Address("10.0.0.9", 1000 + number), PeerId(f"{number:064x}"), now_s())
            assert len(hints._targets) <= MAX_CANDIDATES
            await asyncio.sleep(FLOOD_S / 1000)
        count = len(dialled)
        for address in list(hints._targets):
            hints._drop(address)
    assert count > MAX_DIALS_PER_S, "they are tried, for one of them may be true"
    return count


def test_an_address_that_worked_waits_behind_no_flood() -> None:
    assert run_virtual(back_after_a_loss()) < 0.5


async def back_after_a_loss() -> float:
    """How long until a member that was lost is dialled again, in the middle of a flood."""
    loop = asyncio.get_running_loop()
    member, peer = Address("10.0.0.2", 8478), PeerId("b" * 64)
    lost_s, again = 0.0, loop.create_future()

    async def attempt(target: Target) -> bool:
        if target.address != member:
            return False
        if lost_s and not again.done():
            again.set_result(loop.time())
        return True

    async with asyncio.TaskGroup() as tasks:
        nursery = Nursery()
        nursery.open(tasks)
        hints = Hints(ME, random.Random(1), nursery, attempt, lambda peer: False)
        hints.add(member, peer, loop.time())
        await asyncio.sleep(5)
        for number in range(50):
            hints.add(Address("10.0.0.9", 1000 + number), None, loop.time())
        lost_s = loop.time()
        hints.lost(peer, lost_s)
        waited_s = await again - lost_s
        for address in list(hints._targets):
            hints._drop(address)
    return float(waited_s)
