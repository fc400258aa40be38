"""Faults with names. Each does its harm for a while, then puts right what it did."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from apps.sim.clock import virtual_loop
from apps.sim.history import HOME
from apps.sim.home import Device, Home
from apps.sim.network import Wire
from mesh.fault_points import POINTS

Fault = Callable[[Home, random.Random], Awaitable[None]]


async def crash_and_restart(home: Home, rng: random.Random) -> None:
    device = _take(home, rng)
    if device is not None:
        await device.crash()
        await _while_trouble(home, rng.choice((0.05, 0.5, 3.0, 8.0)) * rng.random())
        device.start()
        device.taken = False


async def power_cut(home: Home, rng: random.Random) -> None:
    device = _take(home, rng)
    if device is not None:
        await device.power_off()
        await _while_trouble(home, rng.uniform(0.5, 8.0))
        device.start()
        device.taken = False


async def leave_and_come_back(home: Home, rng: random.Random) -> None:
    device = _take(home, rng)
    if device is not None:
        await device.leave()
        await _while_trouble(home, rng.uniform(0.1, 5.0))
        device.start()
        device.taken = False


async def pause(home: Home, rng: random.Random) -> None:
    device = _take(home, rng)
    if device is not None:
        device.stop()
        await _while_trouble(home, rng.uniform(0.2, 8.0))
        device.go_on()
        device.taken = False


async def flapping(home: Home, rng: random.Random) -> None:
    device = _take(home, rng)
    if device is not None:
        for _ in range(3):
            await device.crash()
            await _while_trouble(home, rng.uniform(0.2, 1.5))
            device.start()
            await _while_trouble(home, rng.uniform(0.2, 1.5))
        device.taken = False


async def killed_at_a_point(home: Home, rng: random.Random) -> None:
    """Dies at a named place in the code, if it comes there: see `mesh.fault_points`."""
    device = _take(home, rng)
    if device is not None:
        device.at[rng.choice(POINTS)] = device.die
        await _while_trouble(home, rng.uniform(1.0, 8.0))
        died = not device.at
        device.at.clear()
        if died:
            await device.ended()
            device.start()
        device.taken = False


async def halves(home: Home, rng: random.Random) -> None:
    names = list(home.devices)
    rng.shuffle(names)
    middle = rng.randint(1, len(names) - 1)
    await _cut(home, rng, _between(set(names[:middle]), set(names[middle:])))


async def bridge(home: Home, rng: random.Random) -> None:
    """Two sides that only one device can reach both of."""
    names = list(home.devices)
    rng.shuffle(names)
    middle = 1 + (len(names) - 1) // 2
    await _cut(home, rng, _between(set(names[1:middle]), set(names[middle:])))


async def one_way_cut(home: Home, rng: random.Random) -> None:
    source, target = rng.sample(list(home.devices), 2)
    await _cut(home, rng, [(source, target)])


async def deaf_device(home: Home, rng: random.Random) -> None:
    """One device hears nobody, and everybody hears it."""
    deaf = rng.choice(list(home.devices))
    await _cut(home, rng, [(name, deaf) for name in home.devices if name != deaf])


async def lossy(home: Home, rng: random.Random) -> None:
    share = rng.choice((0.05, 0.2, 0.5))
    await _spoil(home, rng, lambda wire: setattr(wire, "drop", share))


async def slow_and_out_of_order(home: Home, rng: random.Random) -> None:
    def spoil(wire: Wire) -> None:
        wire.delay_s = (0.0, rng.choice((0.05, 0.3, 1.0)))
        wire.reorder = True

    await _spoil(home, rng, spoil)


async def twice(home: Home, rng: random.Random) -> None:
    await _spoil(home, rng, lambda wire: setattr(wire, "duplicate", 0.5))


ALL: tuple[Fault, ...] = (
    crash_and_restart,
    power_cut,
    leave_and_come_back,
    pause,
    flapping,
    killed_at_a_point,
    halves,
    bridge,
    one_way_cut,
    deaf_device,
    lossy,
    slow_and_out_of_order,
    twice,
)


async def storm(home: Home, rng: random.Random, for_s: float) -> None:
    """Faults one over the other, then all end at once; everything is put right by then."""
    until_s = virtual_loop().time() + for_s
    async with asyncio.TaskGroup() as tasks:
        while virtual_loop().time() < until_s:
            fault = rng.choice(ALL)
            home.history.say(HOME, virtual_loop().time(), "fault", name=fault.__name__)
            tasks.create_task(fault(home, rng))  # type: ignore[arg-type]
            await asyncio.sleep(rng.expovariate(1 / 1.5))
        home.calm.set()
    home.network.heal()


async def _while_trouble(home: Home, for_s: float) -> None:
    """The time a fault takes; cut short when all trouble ends."""
    with suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            await home.calm.wait()


def _take(home: Home, rng: random.Random) -> Device | None:
    """A running device that no other fault plays with; one always stays untouched."""
    free = [device for device in home.running if not device.taken]
    if len(free) < 2:
        return None
    device = rng.choice(free)
    device.taken = True
    return device


def _between(one: set[str], other: set[str]) -> list[tuple[str, str]]:
    return [pair for a in one for b in other for pair in ((a, b), (b, a))]


async def _cut(home: Home, rng: random.Random, pairs: list[tuple[str, str]]) -> None:
    for pair in pairs:
        home.network.wire(*pair).cut = True
    await _while_trouble(home, rng.choice((1.0, 5.0, 12.0)) * rng.random())
    for pair in pairs:
        home.network.wire(*pair).cut = False


async def _spoil(home: Home, rng: random.Random, spoil: Callable[[Wire], None]) -> None:
    """Makes some or all wires bad for a while, each direction by itself."""
    share = rng.choice((0.3, 1.0))
    pairs = [(a, b) for a in home.devices for b in home.devices if a != b and rng.random() < share]
    for pair in pairs:
        spoil(home.network.wire(*pair))
    await _while_trouble(home, rng.uniform(1.0, 8.0))
    for pair in pairs:
        fresh = Wire(cut=home.network.wire(*pair).cut)
        home.network.wires[pair] = fresh
