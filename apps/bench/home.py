"""An emulated home: devices of given speed and memory, and links of given rate, on one machine.

Each device is a process in a network namespace of its own, on one core, of which it gets its part.
It answers questions, one JSON line each, on its standard input and output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from apps.bench import cgroups, lan
from apps.bench.cgroups import Group
from apps.bench.lan import Lan
from mesh.errors import ConfigError, PotluckError

T = TypeVar("T")

ANSWER_S: Final = 60.0  # a pass of a few large layers on an eighth of a core takes ten seconds
MOST_DEVICES: Final = 8
END_S: Final = 5.0
MAX_LINE_BYTES: Final = 1 << 22
MB: Final = 1_000_000
OWN_BYTES: Final = 200 * MB  # a device takes 172 MB before it has anything of a model


class DeviceFailed(PotluckError):
    """An emulated device ended, or could not do what it was asked; the text is its own."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A home to measure in, its strongest device first."""

    name: str
    cores: tuple[float, ...]  # of each device: 0.25 is a quarter of one core's time
    mbit: int | None = None  # of every link, each way; None: as fast as the machine can
    memory_bytes: tuple[int, ...] = ()  # of each device; beyond it, the system kills

    @classmethod
    def parse(cls, text: str) -> Environment:
        """`4x0.25@125`: four devices of a quarter of a core, links of 125 Mbit/s; `0.5+0.125@125`:
        two unequal ones; `2x0.25:450MB@125`: with so much memory each; without `@`, links as fast
        as the machine. Raises ConfigError.
        """
        devices, _, rate = text.partition("@")
        try:
            parts = [part for one in devices.split("+") for part in _parts(one)]
            mbit = int(rate) if rate else None
        except ValueError:
            parts, mbit = [], None
        limits = {limit for _, limit in parts}
        is_one = 1 < len(parts) <= MOST_DEVICES and (None not in limits or limits == {None})
        if not is_one or not all(0.05 <= cores <= 1 for cores, _ in parts):
            raise ConfigError(
                f"{text!r} is no home: write 4x0.25@125 for four devices of a quarter of a core "
                f"and links of 125 Mbit/s, 0.5+0.125@125 for unequal ones, or 2x0.25:450MB@125 for "
                f"a limit on memory, which then all have; from 2 to {MOST_DEVICES} devices, of "
                f"0.05 to 1 core and at least {OWN_BYTES // MB} MB each"
            )
        parts.sort(key=lambda one: (one[0], one[1] or 0), reverse=True)
        memory = tuple(limit for _, limit in parts if limit is not None)
        return cls(text, tuple(cores for cores, _ in parts), mbit, memory)

    @property
    def model_bytes(self) -> tuple[int, ...]:
        """What each device has for a model, beside itself; none where there are no limits."""
        return tuple(limit - OWN_BYTES for limit in self.memory_bytes)

    def __str__(self) -> str:
        return self.name


def _parts(text: str) -> list[tuple[float, int | None]]:
    """Cores and memory of each of some devices."""
    what, _, memory = text.partition(":")
    count, times, cores = what.rpartition("x")
    limit = None
    if memory:
        limit = int(memory.removesuffix("MB")) * MB
        if not memory.endswith("MB") or limit < OWN_BYTES:
            raise ValueError(memory)
    return [(float(cores), limit)] * (int(count) if times else 1)


def why_not() -> str | None:
    """Why there can be no emulated home here; None when there can."""
    return lan.why_not() or cgroups.why_not()


def why_not_here(environment: Environment) -> str | None:
    """Why this machine cannot be that home."""
    there = len(os.sched_getaffinity(0))
    if sum(environment.cores) > there:
        return f"wants {sum(environment.cores):g} cores, and this machine has {there}"
    return None


@dataclass(slots=True, eq=False)
class Device:
    """A process of the home, and the questions to it, one at a time."""

    index: int
    name: str
    process: asyncio.subprocess.Process
    on_failed: Callable[[DeviceFailed], None]
    ready: dict[str, Any] = field(default_factory=dict)  # what it said of itself at its start
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiting: asyncio.Future[Any] | None = None

    async def ask(self, do: str, **fields: Any) -> Any:
        """What the device answers. Raises DeviceFailed in its words, or when it has ended."""
        assert self.process.stdin is not None
        async with self._asking:
            self._waiting = asyncio.get_running_loop().create_future()
            self.process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await self._waiting
            except TimeoutError:
                raise DeviceFailed(f"{self.name}: no answer to {do!r} in {ANSWER_S:g} s") from None
            finally:
                self._waiting = None

    async def read(self) -> None:
        """Takes its answers until it ends; other lines are what a library prints."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self._take(json.loads(line))
        status = await self.process.wait()
        self.fail(DeviceFailed(f"{self.name} ended with status {status}"))

    def fail(self, error: DeviceFailed) -> None:
        """Whoever waits for an answer gets the error instead."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def _take(self, said: Any) -> None:
        match said:
            case {"answer": answer} if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(answer)
            case {"error": text}:
                self.fail(DeviceFailed(f"{self.name}: {text}"))
            case {"failed": text}:  # the answer would be somebody else's to give
                self.on_failed(DeviceFailed(f"{self.name}: {text}"))


@dataclass(slots=True, eq=False)
class Home:
    """The network and the limits; `start` puts a process on every device."""

    environment: Environment
    lan: Lan
    groups: Sequence[Group]
    _stack: AsyncExitStack
    _devices: list[Device] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def of(cls, environment: Environment) -> AsyncIterator[Home]:
        """Everything of it is gone when the context ends, however it ends.

        Raises ConfigError where this machine cannot be such a home.
        """
        if reason := why_not() or why_not_here(environment):
            raise ConfigError(f"no emulated home: {reason}")
        with ExitStack() as made:
            network = made.enter_context(Lan(len(environment.cores), prefix=f"pb{os.getpid()}"))
            groups = []
            for index in range(network.count):
                groups.append(group := Group.make(f"{network.prefix}-{index}"))
                made.callback(group.remove)
            async with AsyncExitStack() as stack:
                home = cls(environment, network, groups, stack)
                home._limit_memory()
                if environment.mbit is not None:
                    for index in range(network.count):
                        network.shape(index, environment.mbit, environment.mbit)
                with home.limited():
                    yield home

    async def start(self, module: str, **fields: Any) -> list[Device]:
        """`python -m MODULE` on every device, told `fields`, its address and its core; all up."""
        starts = (self._start(index, module, fields) for index in range(self.lan.count))
        with self.unlimited():
            return await all_of(starts)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Meanwhile each device has its part of a core, and no more."""
        self._limit_cores(self.environment.cores)
        try:
            yield
        finally:
            self._limit_cores([None] * len(self.groups))

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Meanwhile each device is as fast as the machine: for what is not measured."""
        self._limit_cores([None] * len(self.groups))
        try:
            yield
        finally:
            self._limit_cores(self.environment.cores)

    def _fail(self, error: DeviceFailed) -> None:
        for device in self._devices:
            device.fail(error)

    def _limit_cores(self, cores: Sequence[float | None]) -> None:
        for group, part in zip(self.groups, cores, strict=True):
            # A whole core needs no quota: the device stays on one.
            group.limit_cores(None if part is None or part >= 1 else part)

    def _limit_memory(self) -> None:
        for group, most_bytes in zip(self.groups, self.environment.memory_bytes, strict=False):
            group.limit_memory(most_bytes)

    async def _start(self, index: int, module: str, fields: dict[str, Any]) -> Device:
        launcher = self.groups[index].joining(self.lan.launcher(index))
        process = await asyncio.create_subprocess_exec(
            *launcher,
            *(sys.executable, "-m", module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            limit=MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for us: we end them
        )
        device = Device(index, f"device {index}", process, self._fail)
        self._devices.append(device)
        reading = asyncio.create_task(device.read())  # until the process ends, which `_end` sees to
        self._stack.push_async_callback(_end, process, reading)
        allowed = sorted(os.sched_getaffinity(0))
        device.ready = await device.ask(
            "start",
            **fields,
            index=index,
            host=self.lan.address(index),
            cores=[allowed[index % len(allowed)]],
        )
        return device


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each returns, once all have ended; raises the first error of any."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return [one for one in done if not isinstance(one, BaseException)]


async def _end(process: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
    """It ends by itself when nobody can ask it any more; else it is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await reading
