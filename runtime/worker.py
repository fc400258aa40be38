"""The worker: this device's one compute thread. Nothing of torch runs in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs one function at a time, in the order asked for, in a thread of its own."""

    def __init__(self, threads: int) -> None:
        """`threads` is how many threads torch may use inside one operation."""
        # The very first torch call of the thread: set later, or elsewhere, torch starts a second
        # OpenMP team and burns several times the CPU.
        self._executor = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="worker",
            initializer=torch.set_num_threads,
            initargs=(threads,),
        )

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Awaits `function(*args, **kwargs)` without holding up the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Lets the running function end; drops what waits."""
        self._executor.shutdown(wait=False, cancel_futures=True)
