"""The reserve: devices that are here but better not planned with now, and when to plan again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from apps.planning.unrest import Unrest
from mesh.ids import PeerId
from mesh.node import Node

CALM_GRACE_S = 0.1  # a device is planned with again this long after it may be
LOOK_AGAIN_S = 10.0  # at devices that could not be measured, or did not answer in time


class Reserve:
    """`wake` is called when a device may be of use again."""

    def __init__(self, node: Node, wake: Callable[[], None]) -> None:
        self._node = node
        self._wake = wake
        self._unrest = Unrest()
        self._look_again: asyncio.TimerHandle | None = None
        self._calm: asyncio.TimerHandle | None = None

    def departed(self, peer: PeerId) -> None:
        """A device died or left."""
        self._unrest.departed(peer, self._now_s)

    def shunned(self) -> dict[PeerId, str]:
        """Who it is, and why. It is planned with again when it is calm."""
        shunned, calm_s = self._unrest.left_out(self._now_s), self._unrest.next_calm_s()
        if calm_s is not None and (self._calm is None or self._calm.when() <= self._now_s):
            self._calm = asyncio.get_running_loop().call_at(calm_s + CALM_GRACE_S, self._wake)
        stuck = {device: "its work does not get on" for device in self._node.view.degraded}
        return {**stuck, **shunned}

    def look_later(self) -> None:
        """Wakes in a while: some could not be measured, or did not answer in time."""
        if self._look_again is not None:
            self._look_again.cancel()
        self._look_again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._wake)

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
