"""One accident as it unfolds: who is in it, whom it takes away, and when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from apps.chaos.case import Case
from apps.chaos.home import Home
from apps.local_mesh import Device, Event


@dataclass(slots=True)
class Scene:
    """Written by the fault, read by the record."""

    home: Home
    case: Case
    owner: Device
    victim: Device
    second: Device
    lost: dict[str, float] = field(default_factory=dict)  # device id -> when it was taken away
    blind: set[str] = field(default_factory=set)  # they cannot hear the others, and rightly say so
    began_s: float = 0.0  # 0: it has not happened yet
    over_s: float = 0.0  # the cause is gone; from now on all must become well
    notes: dict[str, Any] = field(default_factory=dict)  # what only this fault measures
    first_event: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, home: Home, case: Case) -> Scene:
        owner, victim, second = (home.devices[i] for i in (case.owner, case.victim, case.second))
        first = {device.name: len(device.events) for device in home.devices}
        return cls(home, case, owner, victim, second, first_event=first)

    def index(self, device: Device) -> int:
        return self.home.devices.index(device)

    def begin(self, at_s: float | None = None) -> None:
        self.began_s = self.began_s or (time.monotonic() if at_s is None else at_s)

    def over(self) -> None:
        self.over_s = time.monotonic()

    def lose(self, *devices: Device, at_s: float | None = None) -> None:
        """From now on the others should hold them gone, until the cause is over."""
        now_s = time.monotonic() if at_s is None else at_s
        self.begin(now_s)
        for device in devices:
            self.lost[device.device_id] = now_s

    @property
    def survivors(self) -> list[Device]:
        """Those that nothing was done to, or that must get over it: they have to see the loss."""
        return [one for one in self.home.devices if one.device_id not in self.lost]

    @property
    def last_loss_s(self) -> float:
        return max(self.lost.values(), default=self.began_s)

    def events(self, device: Device) -> list[Event]:
        """What it has said since the accident began."""
        said = device.events[self.first_event[device.name] :]
        return [event for event in said if self.began_s and event["at_s"] >= self.began_s]
