"""A worker's thread in virtual time: what is asked for is computed at once, and takes its time."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from apps.sim.clock import virtual_loop


class Processor(Executor):
    """One thing at a time, in the order asked for."""

    def __init__(self, rng: random.Random, turn_s: tuple[float, float]) -> None:
        """Each thing takes a time between those of `turn_s`."""
        self._rng = rng
        self._turn_s = turn_s
        self._free_s = 0.0

    def done_s(self, now_s: float) -> float:
        self._free_s = max(self._free_s, now_s) + self._rng.uniform(*self._turn_s)
        return self._free_s

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """For what nobody waits for."""
        virtual_loop().call_soon(lambda: fn(*args, **kwargs))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is no thread to end."""
