"""Chores: small work for other devices, done between two turns, or while a turn waits.

Two devices that waited for each other, each for one model, would else wait for ever.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Chores:
    """Done in the order they came. A chore never waits for another device, and does not raise."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # notified when one comes
        # Of the worker's thread, which alone writes them.
        self.worked_s = 0.0  # it did chores
        self.is_idle = False  # it waits for other devices just now, and has nothing to do
        self.waited_s = 0.0  # it had to wait for other devices, and had nothing to do
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def waiting(self) -> bool:
        """Whether there is one to do."""
        return bool(self._waiting)

    def add(self, chore: Callable[[], None]) -> None:
        """Wakes a turn that waits; `runtime.worker` sees to it where none does."""
        with self.changed:
            self._waiting.append(chore)
            self.changed.notify_all()

    def work(self) -> None:
        """Does all there are, in the worker's thread."""
        started_s = time.perf_counter()
        while self._waiting:
            self._waiting.popleft()()
        self.worked_s += time.perf_counter() - started_s
