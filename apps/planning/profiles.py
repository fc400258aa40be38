"""This device's own measurements: of a model's layers and head, and of its links to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from apps.models.library import Library
from apps.planning.messages import ProfileReply, ProfileRequest
from mesh.errors import LinkError, ModelError
from mesh.ids import PeerId
from mesh.net.probe import LinkMeasure
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node
from planner.memory import held_bytes
from planner.plan import Capacity, Span
from planner.profile import DeviceProfile, LinkProfile, WireCost
from runtime.checkpoints import Model
from runtime.compute.torch_device import CPU
from runtime.holdings import Holdings
from runtime.measured import Measured, store, stored
from runtime.measuring import measure
from runtime.processor import processor
from runtime.profiler import warm_up
from runtime.worker import Worker

# Reading takes more of the processor than writing, with or without TLS. Only whoever receives could
# measure it; on servers it was so much more.
RECEIVE_TO_SEND = 1.2
SCRATCH_BYTES = 128 * 1024 * 1024  # a 512-token step against a full context, and its tiles


class Measures(Protocol):
    """Whoever says what a device takes for a model."""

    async def answer(self, request: ProfileRequest) -> ProfileReply:
        """What is known, and with `measure` what is not known yet either."""


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
        holdings: Holdings,
    ) -> None:
        self._node = node
        self._links = links
        self._library = library
        self._worker = worker
        self._folder = folder
        self._name = name
        self._threads = threads
        self._holdings = holdings
        self._measured_links: dict[PeerId, tuple[int, LinkMeasure]] = {}  # by incarnation

    async def answer(self, request: ProfileRequest) -> ProfileReply:
        """What is known, and with `measure` what is not known yet either."""
        measured, memory_bytes = None, 0
        try:
            checkpoint = await self._checkpoint(request)
            if checkpoint is not None:
                measured = await self._model(checkpoint, measuring=request.measure)
                memory_bytes = self._memory_for(checkpoint)
        except ModelError as error:
            return ProfileReply(None, str(error), (), unmeasured=False)
        if measured is None:
            return ProfileReply(None, "is not measured yet", (), unmeasured=True)
        links = {peer: await self._link(peer, measuring=request.measure) for peer in request.peers}
        found = {peer: link for peer, link in links.items() if link is not None}
        profile, known = described(
            self._node.view.me,
            self._name,
            memory_bytes,
            measured,
            found,
            processor() if self._holdings.device == CPU else "",
        )
        return ProfileReply(profile, "", known, unmeasured=len(known) < len(links))

    def _memory_for(self, checkpoint: Model) -> int:
        """The memory limit as a plan of this model counts, to which weights weigh what they do on
        processors: where they weigh more here, as much less. Caches then find more than they need.
        """
        planned, held = checkpoint.profile(), checkpoint.profile(self._holdings.device)
        everything, no_caches = Span(0, len(planned.layers)), Capacity(0, 0)
        planned_bytes, bytes_here = (
            held_bytes(one, everything, no_caches) for one in (planned, held)
        )
        return self._holdings.memory_bytes * planned_bytes // max(planned_bytes, bytes_here)

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
        device = self._holdings.device
        where = (self._folder, self._threads, device)
        found = await asyncio.to_thread(stored, checkpoint, *where)
        if found is None and measuring:
            found = await self._worker.run(measure, checkpoint, device)
            await asyncio.to_thread(store, found, checkpoint, *where)
        return found

    async def _link(self, peer: PeerId, *, measuring: bool) -> LinkMeasure | None:
        member = self._node.view.find(peer)
        if member is None or not member.is_here:
            return None  # not met yet, or gone as seen from here: no link to plan with
        incarnation, known = self._measured_links.get(peer, (0, None))
        if known is not None and incarnation == member.incarnation:
            return known
        if not measuring:
            return None
        try:
            found = await self._links.measure(peer)
        except LinkError:
            return None  # a link that cannot be measured cannot be used
        self._measured_links[peer] = (member.incarnation, found)
        return found


def described(
    me: PeerId,
    name: str,
    memory_bytes: int,
    measured: Measured,
    links: Mapping[PeerId, LinkMeasure],
    processor: str = "",
) -> tuple[DeviceProfile, tuple[LinkProfile, ...]]:
    """What this device says of itself and of its links, by what was measured."""
    known = tuple(
        LinkProfile(me, peer, link.round_trip_s, link.bytes_per_s, link.burst_bytes)
        for peer, link in links.items()
    )
    profile = DeviceProfile(
        device=me,
        name=name,
        memory_bytes=memory_bytes,
        layer=measured.layer,
        head_s=measured.head_s,
        scratch_bytes=SCRATCH_BYTES,
        parts=measured.parts,
        wire=wire_cost(measured, list(links.values())),
        processor=processor,
    )
    return profile, known


def wire_cost(measured: Measured, links: Sequence[LinkMeasure]) -> WireCost | None:
    """What sending and receiving takes of this device, by its links; None where there are none."""
    if not links:
        return None
    frame_s = measured.slowdown * sum(link.frame_s for link in links) / len(links)
    byte_s = measured.slowdown * sum(link.byte_s for link in links) / len(links)
    return WireCost(
        send_s_per_byte=byte_s,
        send_s_per_frame=frame_s,
        receive_s_per_byte=RECEIVE_TO_SEND * byte_s,
        receive_s_per_frame=frame_s,
        own_core=measured.own_core,
    )
