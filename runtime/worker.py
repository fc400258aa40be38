"""The worker: this device's one compute thread. Nothing of torch runs in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from runtime.chores import Chores
from runtime.compute.team import assemble

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs one function at a time, in the order asked for, in a thread of its own."""

    def __init__(self, threads: int, executor: Executor | None = None) -> None:
        """`threads` is how many threads may share one operation. An `executor` that runs one thing
        at a time may stand in for the thread.
        """
        self.chores = Chores()
        self._executor = executor or ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="worker",
            initializer=assemble,
            initargs=(threads,),
        )

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits `function(*args, **kwargs)` without holding up the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def soon(self, chore: Callable[[], None]) -> None:
        """Has a chore done: see `Chores`."""
        self.chores.add(chore)
        with contextlib.suppress(RuntimeError):  # closed: what waits is dropped anyway
            self._executor.submit(self.chores.work)

    def close(self) -> None:
        """Lets the running function end; drops what waits."""
        self._executor.shutdown(wait=False, cancel_futures=True)
