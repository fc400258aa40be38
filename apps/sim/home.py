"""A simulated home: devices that start, crash, lose power, stop, leave, and come back."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections.abc import Iterable
from typing import Any

from apps.sim.check import disagreements
from apps.sim.clock import DEVICE, virtual_loop
from apps.sim.history import HOME, History
from apps.sim.network import PORT, Network
from mesh.ids import Address, PeerId
from mesh.membership import View
from mesh.node import Node, NodeSettings
from mesh.state_store import MemoryStore


class Device:
    """A machine of the home: its disk survives, its processes come and go."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.peer = PeerId(hashlib.sha256(name.encode()).hexdigest())
        self.store = MemoryStore()
        self.node: Node | None = None
        self.stopped = False
        self.taken = False  # by a fault
        self.hints: tuple[str, ...] | None = None  # whose addresses it is told; None: everybody's
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.node is not None and not self.stopped

    @property
    def view(self) -> View:
        assert self.node is not None, f"{self.name} does not run"
        return self.node.view

    def start(self, *, merit: float = 0.5) -> None:
        """A new process; it looks for the others where they always are."""
        assert self.node is None, f"{self.name} runs already"
        context = contextvars.Context()
        context.run(DEVICE.set, self.name)
        transport = self.home.network.boot(self.name, self.peer)
        node = Node(
            self.peer,
            self.name,
            transport,
            self.store,
            random.Random(self.home.rng.random()),
            NodeSettings(merit),
        )
        node.subscribe(lambda event: self.home.history.record(self.name, event))
        for other in self.home.devices.values():
            if other is not self and (self.hints is None or other.name in self.hints):
                known = self.home.rng.random() < 0.5  # mDNS tells whose address it is, --peer not
                node.hint(self.home.address(other), other.peer if known else None)
        self._say("started")
        self.node = node
        self._task = virtual_loop().create_task(node.run(), context=context)

    async def crash(self) -> None:
        """kill -9."""
        self.home.network.crash(self.name)
        await self._end()

    async def power_off(self) -> None:
        self.home.network.power_off(self.name)
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
        assert self.node is not None
        assert self._task is not None
        node, task = self.node, self._task
        await node.leave()
        await task
        self._say("ended")
        self.node = self._task = None

    def _say(self, event: str, **fields: Any) -> None:
        self.home.history.say(self.name, virtual_loop().time(), event, **fields)

    async def _end(self) -> None:
        assert self._task is not None
        self._say("ended")
        if self.stopped:
            self.go_on()
        task, self._task, self.node = self._task, None, None
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise


class Home:
    """`count` devices named d0, d1, ... on one network, all chance from `seed`."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.network = Network(random.Random(self.rng.random()))
        self.calm = asyncio.Event()  # set when the faults are over
        self.devices = {f"d{i}": Device(self, f"d{i}") for i in range(count)}
        self.history = History({device.peer: name for name, device in self.devices.items()})
        self.history.say(HOME, 0.0, "home", devices=list(self.devices), seed=seed)

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
