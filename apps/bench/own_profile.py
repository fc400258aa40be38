"""An emulated device measures itself, by what the daemon measures itself with."""

from __future__ import annotations

from collections.abc import Sequence

from apps.planning.profiles import described
from mesh.ids import PeerId
from mesh.net.probe import LinkMeasure
from mesh.net.tensor_links import TensorLinks
from planner.profile import DeviceProfile, LinkProfile
from runtime.checkpoints import Model
from runtime.measuring import measure
from runtime.processor import processor
from runtime.worker import Worker


class OwnProfile:
    """The links are measured once; a model each time that it is asked for, at the speed that the
    device then has.
    """

    def __init__(self, me: PeerId, worker: Worker, links: TensorLinks) -> None:
        self._me = me
        self._worker = worker
        self._links = links
        self._measured: dict[PeerId, LinkMeasure] = {}

    async def told(
        self, name: str, model: Model, memory_bytes: int, peers: Sequence[PeerId]
    ) -> tuple[DeviceProfile, tuple[LinkProfile, ...]]:
        """Of this device with the model, and of its links to these peers. Raises LinkClosed."""
        measured = await self._worker.run(measure, model)
        for peer in peers:
            if peer not in self._measured:
                self._measured[peer] = await self._links.measure(peer)
        return described(self._me, name, memory_bytes, measured, self._measured, processor())
