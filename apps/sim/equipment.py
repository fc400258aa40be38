"""What the devices of a simulated home have beside their network: a model, memory, speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planner.memory import held_bytes
from planner.plan import Capacity, Span
from planner.profile import ModelProfile

ROOM = Capacity(sessions=2, context=128)


@dataclass(frozen=True, slots=True)
class Equipment:
    """Of all devices, by their names where they differ."""

    disk: Path  # with a folder for each device
    model: Path  # where it is; devices know it by its folder's name
    profile: ModelProfile
    room: Capacity = ROOM
    # How much of what the whole model takes each device has memory for; 1.2 where nothing is said.
    shares: Mapping[str, float] = field(default_factory=dict)
    speeds: Mapping[str, float] = field(default_factory=dict)  # 1.0 where nothing is said
    holders: frozenset[str] | None = None  # who has the model; None: all
    turn_s: tuple[float, float] = (0.02, 0.06)  # of whatever the worker does

    def folder(self, device: str) -> Path:
        """What the device has on its disk."""
        folder = self.disk / device
        here = folder / "models" / self.model.name
        if (self.holders is None or device in self.holders) and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(self.model)
        return folder

    def memory_bytes(self, device: str) -> int:
        layers = Span(0, len(self.profile.layers))
        return int(self.shares.get(device, 1.2) * held_bytes(self.profile, layers, self.room))

    def layer_s(self, device: str) -> float:
        return 0.004 / self.speeds.get(device, 1.0)
