"""Where a node's tasks live: a TaskGroup, with an answer for what comes when it is ending."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Nursery:
    """Starts tasks while the node runs; before and after that, what is asked for is not begun.

    A link that ends because the node ends would else want to start its after-care in a group
    that no longer takes tasks.
    """

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None

    def open(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    @property
    def is_open(self) -> bool:
        return self._group is not None

    def close(self) -> None:
        self._group = None

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        try:
            if self._group is not None:
                return self._group.create_task(work)
        except RuntimeError:  # the group is shutting down, and this is how it says so
            pass
        work.close()
        return None
