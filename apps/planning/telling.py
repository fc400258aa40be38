"""The telling: every device learns which plans are in force, also those without a share in the last
one; it ends what is no longer, and says what it should hold and does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

from apps.planning.messages import InForce
from apps.planning.rollout import commit
from mesh.errors import MeshError
from mesh.ids import Epoch, PeerId, PlanId
from mesh.node import Node

TELL_AGAIN_S = 10.0  # a device that did not hear it


class Telling:
    """Goes on beside the leader's loop, since nobody waits for it. One for each leadership."""

    def __init__(
        self, node: Node, lacks: Callable[[Collection[PlanId]], None], again: Callable[[], None]
    ) -> None:
        """`lacks` hears of plans that a device does not hold ready; `again` is called when it is
        time to tell those once more who did not hear it.
        """
        self._node = node
        self._lacks = lacks
        self._again = again
        self._heard: dict[PeerId, int] = {}  # which version
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, devices: Iterable[PeerId], version: int) -> None:
        """These devices know this version already."""
        self._heard |= dict.fromkeys(devices, version)

    def forget(self, peer: PeerId) -> None:
        """It is gone, and knows nothing when it is back."""
        self._heard.pop(peer, None)

    def tell(
        self,
        devices: Iterable[PeerId],
        epoch: Epoch,
        in_force: tuple[InForce, ...],
        version: int,
    ) -> None:
        """Starts to tell those of the devices that do not know this version."""
        untold = [device for device in devices if self._heard.get(device) != version]
        if untold:
            self.stop()
            self._task = asyncio.create_task(self._tell(untold, epoch, in_force, version))

    def stop(self) -> None:
        """Ends what is under way; whoever was not reached is told the next time."""
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def _tell(
        self,
        devices: list[PeerId],
        epoch: Epoch,
        in_force: tuple[InForce, ...],
        version: int,
    ) -> None:
        async def tell_one(device: PeerId) -> frozenset[PlanId]:
            try:
                lacks = await commit(self._node, [device], epoch, in_force)
            except MeshError:
                return frozenset()  # told again later
            self._heard[device] = version
            return lacks

        lacks = frozenset().union(*await asyncio.gather(*map(tell_one, devices)))
        if any(self._heard.get(device) != version for device in devices):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(TELL_AGAIN_S, self._again)
        if lacks:
            self._lacks(lacks)
