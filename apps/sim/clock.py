"""An event loop in virtual time: when nothing is ready, the clock jumps to the next timer.

Each simulated device runs its tasks in a context of its own, so the loop knows whose callback is
whose, and can hold back everything of a device that is stopped (SIGSTOP, or a laptop asleep):
its timers then come late and its messages wait, as they do in a real process.

What would run in a thread runs at once, and is done some virtual time later. Nothing depends on
where objects lie in memory: a run is the same again.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from itertools import count
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, runtime_checkable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DEVICE: contextvars.ContextVar[str] = contextvars.ContextVar("device")
NOBODY = contextvars.Context()  # for what happens outside any device: wires, the schedule
THREAD_S: Final = 0.002  # what is done in a thread of no device's worker: a look at the disk


@runtime_checkable
class Paced(Protocol):
    """An executor in virtual time."""

    def done_s(self, now_s: float) -> float:
        """When what is asked for now will be done."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only by jumps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_JumpingSelector(self))
        self._queue = _Ready()
        self._ready = self._queue
        self._numbers = count()
        self.set_task_factory(self._task)

    def time(self) -> float:
        return self.now_s

    def stop_device(self, device: str) -> None:
        self._queue.held.setdefault(device, [])

    def continue_device(self, device: str) -> None:
        self._queue.extend(self._queue.held.pop(device, []))

    def is_stopped(self, device: str) -> bool:
        return device in self._queue.held

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(next(self._numbers), self)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Calls the function now; its outcome comes when the executor says."""
        future: asyncio.Future[T] = self.create_future()
        until_s = self.now_s + THREAD_S
        if isinstance(executor, Paced):
            until_s = executor.done_s(self.now_s)
        try:
            settle, outcome = future.set_result, func(*args)
        except Exception as error:  # whatever it is: it belongs to whoever waits for the outcome
            settle, outcome = future.set_exception, error  # type: ignore[assignment]
        self.call_at(until_s, lambda: None if future.done() else settle(outcome))
        return future

    def _task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        return _Task(next(self._numbers), coroutine, loop=loop, **options)

    def _write_to_self(self) -> None:
        """No other thread has to wake this loop."""


class _Future(asyncio.Future[Any]):
    """Known by a number, so that sets of such have the same order in each run."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._number = number

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    def __init__(self, number: int, coroutine: Any, **options: Any) -> None:
        self._number = number  # first: a task is put into a set while it is made
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left to happen: every task waits for ever")
        self._loop.now_s += max(0.0, timeout)
        return []


class _Ready(deque[asyncio.Handle]):
    """The loop's run queue; callbacks of a stopped device wait aside."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, list[asyncio.Handle]] = {}

    def append(self, handle: asyncio.Handle) -> None:
        if self.held:
            context: contextvars.Context = handle._context  # type: ignore[attr-defined]
            held = self.held.get(context.get(DEVICE, ""))
            if held is not None:
                held.append(handle)
                return
        super().append(handle)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "run this inside run_virtual"
    return loop
