"""An event loop in virtual time: when nothing is ready, the clock jumps to the next timer.

Each simulated device runs its tasks in a context of its own, so the loop knows whose callback is
whose, and can hold back everything of a device that is stopped (SIGSTOP, or a laptop asleep):
its timers then come late and its messages wait, as they do in a real process.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

DEVICE: contextvars.ContextVar[str] = contextvars.ContextVar("device")
NOBODY = contextvars.Context()  # for what happens outside any device: wires, the schedule


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only by jumps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_JumpingSelector(self))
        self._queue = _Ready()
        self._ready = self._queue

    def time(self) -> float:
        return self.now_s

    def stop_device(self, device: str) -> None:
        self._queue.held.setdefault(device, [])

    def continue_device(self, device: str) -> None:
        self._queue.extend(self._queue.held.pop(device, []))

    def is_stopped(self, device: str) -> bool:
        return device in self._queue.held


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
