"""Named places in the code at which a test may let something go wrong; else they do nothing.

What is armed belongs to a context, not to the process: in a simulated home each device runs in a
context of its own, and one of them may die where another goes on.

    epoch.persisted        an epoch is on disk, and nobody has been told
    plan.prepared          the leader: every device holds a plan ready, none has switched
    plan.committed         the leader: every device has switched, and it has not noted so
    share.prepared         a device: its share is loaded, and the leader has not heard of it
    share.committed        a device: it has switched, and the leader has not heard of it
    session.replaying      an owner: the stages of the next plan are open, and nothing was sent
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

POINTS: Final = (
    "epoch.persisted",
    "plan.prepared",
    "plan.committed",
    "share.prepared",
    "share.committed",
    "session.replaying",
)

Reached = Callable[[str], None]

_reached: ContextVar[Reached | None] = ContextVar("reached", default=None)


def reach(point: str) -> None:
    """Says that this place is reached. It raises what an armed test raises, and else nothing."""
    reached = _reached.get()
    if reached is not None:
        reached(point)


def arm(reached: Reached) -> None:
    """From now on `reached` hears of each point in this context and those that come from it."""
    _reached.set(reached)
