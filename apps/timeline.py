"""The timeline: what happened on this device, when, in words. Recoveries are measured by it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

MAX_EVENTS = 1000  # a day of a lively home; the oldest go first


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """`at_s` is the machine's monotonic clock, so that processes of one machine can be compared."""

    number: int
    at_s: float
    kind: str
    text: str
    fields: dict[str, Any]


class Timeline:
    """A bounded log of events that people and tests read through the API."""

    def __init__(self) -> None:
        self._events: deque[TimelineEvent] = deque(maxlen=MAX_EVENTS)
        self._number = 0
        self._grown = asyncio.Event()

    def note(self, kind: str, text: str, *, at_s: float | None = None, **fields: Any) -> None:
        """Appends an event; `at_s` defaults to now."""
        now_s = asyncio.get_running_loop().time() if at_s is None else at_s
        self._number += 1
        self._events.append(TimelineEvent(self._number, now_s, kind, text, fields))
        self._grown.set()

    def since(self, number: int) -> list[TimelineEvent]:
        """The events after event `number`; 0 for all that are kept."""
        return [event for event in self._events if event.number > number]

    async def wait_since(self, number: int) -> list[TimelineEvent]:
        """Like `since`, but waits until there is at least one."""
        while not (events := self.since(number)):
            self._grown.clear()
            await self._grown.wait()
        return events
