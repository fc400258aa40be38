"""Which devices the next plan leaves out, and why: they refused their share of the last ones."""

from __future__ import annotations

from collections import Counter

from apps.planning.rollout import DeviceLacks, DeviceRefused, DeviceUnable
from mesh.ids import PeerId

MAX_REFUSALS = 4  # by one device that is here and says "not now", until a plan is made without it


class Refusals:
    """A device that cannot is left out until it has been away; one that keeps saying not now, or
    whose weights nobody has, for one plan only.
    """

    def __init__(self) -> None:
        self._unable: dict[PeerId, str] = {}
        self._passed: dict[PeerId, str] = {}
        self._counts: Counter[PeerId] = Counter()  # since the last plan

    @property
    def out(self) -> dict[PeerId, str]:
        """Who is left out, and why."""
        return {**self._unable, **self._passed}

    def count(self, error: DeviceRefused) -> None:
        device = error.device
        self._counts[device] += 1
        if isinstance(error, DeviceUnable):
            self._unable[device] = error.reason
        elif isinstance(error, DeviceLacks) or self._counts[device] >= MAX_REFUSALS:
            self._passed[device] = error.reason

    def forget(self, device: PeerId) -> None:
        """It was away: back with a mended disk, perhaps."""
        self._unable.pop(device, None)

    def planned(self) -> frozenset[PeerId]:
        """A plan is in force; who was passed over for it alone, to be looked at again."""
        passed = frozenset(self._passed)
        self._passed.clear()
        self._counts.clear()
        return passed
