"""A plan in force, as a device knows it."""

from __future__ import annotations

from dataclasses import dataclass

from apps.planning.messages import Wish
from mesh.ids import PeerId
from planner.memory import device_bytes
from planner.plan import Capacity, Plan


@dataclass(frozen=True, slots=True)
class Standing:
    """The last plan of its model that came in force."""

    plan: Plan
    wish: Wish
    used_s: float  # when the model was last used, in the loop's time, as far as was known then

    def held_bytes(self, device: PeerId, room: Capacity) -> int:
        """What the device's share of it weighs with this room; 0 where it has none."""
        return device_bytes(self.wish.profile, self.plan, device, room)
