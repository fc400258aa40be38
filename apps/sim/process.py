"""One run of a device's software, from its start to its end, whichever way it ends.

Of a process that was killed nothing gets out any more, and nothing reaches its disk; so it does not
matter what its tasks still do while they are taken apart.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from apps.engine import Engine, Means
from apps.settings import Settings
from apps.sim.clock import DEVICE, virtual_loop
from apps.sim.equipment import Equipment
from apps.sim.figures import Figures
from apps.sim.processor import Processor
from apps.sim.transport import SimTransport
from apps.timeline import Timeline
from mesh.events import Event
from mesh.fault_points import arm
from mesh.ids import CHANCE
from mesh.node import Node, NodeSettings
from mesh.state_store import StateStore, StoredState
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU
from runtime.worker import Worker

# Of the timeline, what a history tells: the rest are the mesh's events, which it has already.
TOLD = frozenset(
    {
        "planning",
        "installed",
        "plan",
        "plan-failed",
        "plan-kept",
        "no-plan",
        "paused",
        "resumed",
        "step-failed",
        "evicted",
        "fetched",
        "trouble",
    }
)

Say = Callable[..., None]


class Killed(BaseException):
    """The process ends here, at once."""


class Process:
    """`say` writes into the history; `reached` hears of fault points and may `kill`."""

    def __init__(
        self,
        name: str,
        transport: SimTransport,
        store: StateStore,
        rng: random.Random,
        merit: float,
        *,
        say: Say,
        on_event: Callable[[Event], None],
        reached: Callable[[str], None],
        equipment: Equipment | None,
    ) -> None:
        self.alive = True
        self.gone = asyncio.Event()  # nothing of it runs any more
        self.engine: Engine | None = None
        self._transport = transport
        self.say = say
        self._context = contextvars.Context()
        self._context.run(self._set_context, name, rng, reached)
        self._tasks: list[asyncio.Task[None]] = []
        self.node = Node(
            transport.peer, name, transport, _Disk(self, store), rng, NodeSettings(merit)
        )
        self.node.subscribe(lambda event: on_event(event) if self.alive else None)
        if equipment is not None:
            self.engine = self._context.run(self._made, equipment, name, rng)

    def start(self) -> None:
        """Its parts begin to run."""
        self.spawn(self.node.run() if self.engine is None else self.engine.run())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that goes on in this process, and ends with it."""
        task = virtual_loop().create_task(work, context=self._context)
        self._tasks.append(task)
        return task

    async def leave(self) -> None:
        """Hands over what goes through it, says goodbye, and ends."""
        if self.engine is not None:
            await self.spawn(self.engine.hand_over.run())
        await self.node.leave()
        await self.end()

    def kill(self) -> None:
        """kill -9, from within or without: its last moment."""
        if self.alive:
            self.alive = False
            self._transport.kill()

    def lose_power(self) -> None:
        """Like that, but the others' machines are told nothing."""
        self.alive = False
        self._transport.host.powered = False
        self._transport.vanish()

    async def end(self) -> None:
        """Returns when nothing of it runs any more."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError, Killed, BaseExceptionGroup):
                await task
        self.alive = False
        self.gone.set()

    def _set_context(self, name: str, rng: random.Random, reached: Callable[[str], None]) -> None:
        def point(name: str) -> None:
            if not self.alive:
                raise Killed  # it is being taken apart
            reached(name)

        DEVICE.set(name)
        CHANCE.set(rng.randbytes)
        arm(point)

    def _made(self, equipment: Equipment, name: str, rng: random.Random) -> Engine:
        memory_bytes = equipment.memory_bytes(name)
        means = Means(
            folder=equipment.folder(name),
            server=self._transport,
            dialer=self._transport,
            worker=Worker(1, Processor(rng, equipment.turn_s)),
            torch_device=CPU,
            memory_bytes=memory_bytes,
            measures=Figures(self.node, name, equipment.layer_s(name), memory_bytes),
        )
        settings = Settings(
            home=means.folder,
            name=name,
            memory_bytes=memory_bytes,
            sessions=equipment.room.sessions,
            context=equipment.room.context,
            precision=Precision.FP32,
            threads=1,
        )
        return Engine(settings, self.node, means, _Told(self))


class _Disk:
    """A process's way to the disk, which outlives it."""

    def __init__(self, process: Process, store: StateStore) -> None:
        self._process = process
        self._store = store

    def load(self) -> StoredState:
        return self._store.load()

    def save(self, state: StoredState) -> None:
        if self._process.alive:
            self._store.save(state)


class _Told(Timeline):
    """A timeline that goes into the history as well."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def note(self, kind: str, text: str, *, at_s: float | None = None, **fields: Any) -> None:
        super().note(kind, text, at_s=at_s, **fields)
        if kind in TOLD and self._process.alive:
            self._process.say(kind, text=text, **fields)
