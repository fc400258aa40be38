"""What a fault is: how it is done to a scene, how it is made good, and what must be seen of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from apps.chaos.case import MAX_DEVICES, MIN_DEVICES
from apps.chaos.equipment import Equipment
from apps.chaos.scene import Scene

Deed = Callable[[Scene], Awaitable[None]]


class Seen(Enum):
    """What the survivors have to make of it."""

    DEATH = "death"
    GOODBYE = "goodbye"
    NOTHING = "nothing"  # slow, or away for a moment, is not dead


async def nothing(scene: Scene) -> None:
    """For faults that end by themselves."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An accident by its name."""

    words: str
    strike: Deed  # returns when it has happened; faults of some length, when they are over
    undo: Deed = nothing  # brings the home back to all devices, all well
    seen: Seen = Seen.DEATH
    equipment: Equipment = Equipment()
    devices: range = range(MIN_DEVICES, MAX_DEVICES + 1)
    prepare: Deed = nothing  # casts the parts, before anybody speaks
