"""A simulated home: devices that start, crash, lose power, stop, leave, and come back."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from apps.sim.check import disagreements
from apps.sim.clock import NOBODY, virtual_loop
from apps.sim.equipment import Equipment
from apps.sim.history import HOME, History
from apps.sim.network import Network
from apps.sim.process import Killed, Process
from apps.sim.transport import PORT, SimTransport
from mesh.ids import Address, PeerId
from mesh.membership import View
from mesh.node import Node
from mesh.state_store import MemoryStore


class Device:
    """A machine of the home: its disk survives, its processes come and go."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.peer = PeerId(hashlib.sha256(name.encode()).hexdigest())
        self.store = MemoryStore()
        self.process: Process | None = None
        self.stopped = False
        self.taken = False  # by a fault
        self.hints: tuple[str, ...] | None = None  # whose addresses it is told; None: everybody's
        self.at: dict[str, Callable[[], None]] = {}  # what happens at a fault point, once

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive and not self.stopped

    @property
    def node(self) -> Node | None:
        return self.process.node if self.process is not None else None

    @property
    def view(self) -> View:
        assert self.node is not None, f"{self.name} does not run"
        return self.node.view

    def start(self, *, merit: float = 0.5) -> None:
        """A new process; it looks for the others where they always are."""
        assert self.process is None, f"{self.name} runs already"
        home = self.home
        self.process = process = Process(
            self.name,
            SimTransport.boot(home.network, self.name, self.peer),
            self.store,
            random.Random(home.rng.random()),
            merit,
            say=self.say,
            on_event=lambda event: home.history.record(self.name, event),
            reached=self._reached,
            equipment=home.equipment,
        )
        for other in home.devices.values():
            if other is not self and (self.hints is None or other.name in self.hints):
                known = home.rng.random() < 0.5  # mDNS tells whose address it is, --peer not
                process.node.hint(home.address(other), other.peer if known else None)
        self.say("started")
        process.start()

    async def crash(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        await self._end()

    async def power_off(self) -> None:
        assert self.process is not None
        self.process.lose_power()
        await self._end()

    def stop(self) -> None:
        """SIGSTOP: nothing of it runs, its sockets stay."""
        self.stopped = True
        virtual_loop().stop_device(self.name)

    def go_on(self) -> None:
        """SIGCONT."""
        self.stopped = False
        virtual_loop().continue_device(self.name)

    async def leave(self) -> None:
        assert self.process is not None
        await self.process.leave()
        self.say("ended")
        self.process = None

    async def ended(self) -> None:
        """Returns when a process that died at a fault point is gone for good."""
        if self.process is not None:
            await self.process.gone.wait()

    def say(self, event: str, **fields: Any) -> None:
        self.home.history.say(self.name, virtual_loop().time(), event, **fields)

    def _reached(self, point: str) -> None:
        happens = self.at.pop(point, None)
        if happens is not None:
            self.say("fault", name=f"{happens.__name__} at {point}")
            happens()

    def die(self) -> None:
        """kill -9 from within, at a fault point."""
        assert self.process is not None
        self.process.kill()
        self.home.spawn(self._end())
        raise Killed

    async def _end(self) -> None:
        self.say("ended")
        if self.stopped:
            self.go_on()
        assert self.process is not None
        await self.process.end()
        self.process = None


class Home:
    """`count` devices named d0, d1, ... on one network, all chance from `seed`.

    With `equipment` the devices plan and compute; without, they only meet.
    """

    def __init__(self, count: int, seed: int = 0, equipment: Equipment | None = None) -> None:
        self.rng = random.Random(seed)
        self.network = Network(random.Random(self.rng.random()), loses_for_good=equipment is None)
        self.equipment = equipment
        self.calm = asyncio.Event()  # set when the faults are over
        self.devices = {f"d{i}": Device(self, f"d{i}") for i in range(count)}
        self.history = History({device.peer: name for name, device in self.devices.items()})
        self.history.say(HOME, 0.0, "home", devices=list(self.devices), seed=seed)
        self._tasks: list[asyncio.Task[None]] = []

    def __getitem__(self, index: int) -> Device:
        return self.devices[f"d{index}"]

    @staticmethod
    def address(device: Device) -> Address:
        return Address(device.name, PORT)

    @property
    def running(self) -> list[Device]:
        return [device for device in self.devices.values() if device.running]

    def disagreements(self, among: Iterable[Device] | None = None) -> list[str]:
        """How these devices, or all that run now, differ from one view with one leader."""
        devices = self.running if among is None else among
        return disagreements({one.name: self.history.seen(one.view) for one in devices})

    def start(self, *indices: int) -> None:
        for index in indices or range(len(self.devices)):
            self[index].start()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that happens to the home, whatever becomes of the devices."""
        self._tasks.append(virtual_loop().create_task(work, context=NOBODY.copy()))

    async def end(self) -> None:
        """Every process that still runs is killed."""
        for device in self.devices.values():
            if device.process is not None and device.process.alive:
                await device.crash()
        await asyncio.gather(*self._tasks)
