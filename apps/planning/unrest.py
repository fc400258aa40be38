"""Unrest: which devices went so often of late that they are not planned with. No clock: times are
handed in.

Each departure adds one; half of it is forgotten every HALF_LIFE_S. One departure is an accident and
costs a returning device nothing. At the second within half a minute it is left out of plans, as
long as the others can do without it, until all but a little is forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from mesh.ids import PeerId

HALF_LIFE_S: Final = 30.0  # a device that flaps slower than this costs a plan a minute at most
LEFT_OUT_AT: Final = 1.5  # two departures within half a minute
CALM_AT: Final = 0.75
MOST: Final = 6.0  # remembered of one device: it is trusted again after three half-lives of calm


@dataclass(frozen=True, slots=True)
class Restless:
    """One device's departures: their weight, and when that was so."""

    weight: float = 0.0
    at_s: float = 0.0
    is_left_out: bool = False

    def weight_at(self, now_s: float) -> float:
        return self.weight * math.exp2(-(now_s - self.at_s) / HALF_LIFE_S)

    @property
    def calm_s(self) -> float:
        """When it is calm again, if nothing happens."""
        return self.at_s + HALF_LIFE_S * math.log2(self.weight / CALM_AT)


def departed(known: Restless, now_s: float) -> Restless:
    weight = min(MOST, known.weight_at(now_s) + 1)
    return Restless(weight, now_s, is_left_out=known.is_left_out or weight >= LEFT_OUT_AT)


def at(known: Restless, now_s: float) -> Restless:
    """The same device now: no longer left out once it is calm."""
    calm = known.is_left_out and now_s >= known.calm_s
    return replace(known, is_left_out=False) if calm else known


class Unrest:
    """Of all devices, as one device has seen them come and go."""

    def __init__(self) -> None:
        self._known: dict[PeerId, Restless] = {}

    def departed(self, device: PeerId, now_s: float) -> None:
        self._known[device] = departed(at(self._known.get(device, Restless()), now_s), now_s)

    def left_out(self, now_s: float) -> dict[PeerId, str]:
        """Who is not planned with, and why."""
        self._known = {
            device: at(known, now_s)
            for device, known in self._known.items()
            if known.weight_at(now_s) > CALM_AT / 10
        }
        return {
            device: f"it came and went too often; planned with again in "
            f"{max(1.0, known.calm_s - now_s):.0f} s, if it stays"
            for device, known in self._known.items()
            if known.is_left_out
        }

    def next_calm_s(self) -> float | None:
        """When the first of those left out is calm again."""
        return min((one.calm_s for one in self._known.values() if one.is_left_out), default=None)
