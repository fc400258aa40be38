"""This device's own measurements: of a model's layers and head, and of its links to the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

from apps.models.library import Library
from apps.planning.messages import ProfileReply, ProfileRequest
from mesh.errors import LinkError, ModelError
from mesh.ids import PeerId
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node
from planner.profile import DeviceProfile, LinkProfile
from runtime.checkpoints import Model
from runtime.measuring import measure
from runtime.profiler import Measured, store, stored, warm_up
from runtime.worker import Worker

SCRATCH_BYTES = 128 * 1024 * 1024  # a 512-token step against a full context, and its tiles


class Profiles:
    """Measures once and remembers: the model on disk, the links for as long as they live."""

    def __init__(
        self,
        *,
        node: Node,
        links: TensorLinks,
        library: Library,
        worker: Worker,
        folder: Path,
        name: str,
        threads: int,
        memory_bytes: int,
    ) -> None:
        self._node = node
        self._links = links
        self._library = library
        self._worker = worker
        self._folder = folder
        self._name = name
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._measured_links: dict[PeerId, tuple[int, LinkProfile]] = {}  # by incarnation

    async def answer(self, request: ProfileRequest) -> ProfileReply:
        """What is known, and with `measure` what is not known yet either."""
        try:
            checkpoint = await self._checkpoint(request)
            measured = None
            if checkpoint is not None:
                measured = await self._model(checkpoint, measuring=request.measure)
        except ModelError as error:
            return ProfileReply(None, str(error), (), unmeasured=False)
        if measured is None:
            return ProfileReply(None, "is not measured yet", (), unmeasured=True)
        links = [await self._link(peer, measuring=request.measure) for peer in request.peers]
        known = tuple(link for link in links if link is not None)
        profile = DeviceProfile(
            device=self._node.view.me,
            name=self._name,
            memory_bytes=self._memory_bytes,
            layer=measured.layer,
            head_s=measured.head_s,
            scratch_bytes=SCRATCH_BYTES,
        )
        return ProfileReply(profile, "", known, unmeasured=len(known) < len(links))

    async def _checkpoint(self, request: ProfileRequest) -> Model | None:
        """The model as far as measuring needs it: opened with what the other devices give, its
        weights perhaps still holes. They read as zeros, and a layer of zeros takes as long as any
        other; so a device can say what it is worth before it holds a single weight.
        """
        if not request.measure:
            return await self._library.here(request.wish.model)
        warming = asyncio.ensure_future(self._worker.run(warm_up))
        try:
            return await self._library.get(request.wish.model)
        finally:
            await warming

    async def _model(self, checkpoint: Model, *, measuring: bool) -> Measured | None:
        found = await asyncio.to_thread(stored, checkpoint, self._folder, self._threads)
        if found is None and measuring:
            found = await self._worker.run(measure, checkpoint)
            await asyncio.to_thread(store, found, checkpoint, self._folder, self._threads)
        return found

    async def _link(self, peer: PeerId, *, measuring: bool) -> LinkProfile | None:
        member = self._node.view.find(peer)
        if member is None or not member.is_here:
            return None  # not met yet, or gone as seen from here: no link to plan with
        incarnation, known = self._measured_links.get(peer, (0, None))
        if known is not None and incarnation == member.incarnation:
            return known
        if not measuring:
            return None
        try:
            measured = await self._links.measure(peer)
        except LinkError:
            return None  # a link that cannot be measured cannot be used
        found = LinkProfile(self._node.view.me, peer, measured.round_trip_s, measured.bytes_per_s)
        self._measured_links[peer] = (member.incarnation, found)
        return found
