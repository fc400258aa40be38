"""A device's part in the mesh above its network and disk: node, links, runtime and leader's loop.

The daemon gives it sockets, a thread to compute in and an API; the simulator a network in memory
and virtual time. How they are wired together stands here alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apps.chronicle import Chronicle
from apps.models.models import Models
from apps.models.use import ModelUse
from apps.opener import Opener
from apps.peer_links import PeerLinks
from apps.planning.coordinator import Coordinator
from apps.planning.handover import HandOver
from apps.planning.installer import Installer
from apps.planning.member import MemberRole
from apps.planning.messages import BLAME_DEVICE, Blame
from apps.planning.profiles import Measures, Profiles
from apps.settings import Settings
from apps.timeline import Timeline
from mesh.codec import to_plain
from mesh.errors import LinkError, StaleEpoch
from mesh.events import Event, LinkUp, PeerDied, PeerForgot, PeerJoined, PeerLeft, ViewChanged
from mesh.ids import PeerId
from mesh.limits import MAX_LOG_SHARE
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node
from mesh.tensor_frame import FrameHeader, TensorFrame
from mesh.transport import Dials, Routes
from planner.plan import Plan
from runtime.holdings import Holdings
from runtime.outbox import Outbox
from runtime.pipeline import Pipeline
from runtime.session_messages import STEP_FAILED, StepFailed
from runtime.steps import Steps
from runtime.worker import Worker

LEADER_WAIT_S = 5.0  # far more than an election takes


@dataclass(frozen=True, slots=True)
class Means:
    """What a device has to work with."""

    folder: Path  # models and profiles are kept here
    server: Routes
    dialer: Dials
    worker: Worker
    torch_device: torch.device
    memory_bytes: int  # for weights and caches
    measures: Measures | None = None  # instead of what is measured here


class Engine:
    """One device of the mesh, from its links to its worker."""

    def __init__(self, settings: Settings, node: Node, means: Means, timeline: Timeline) -> None:
        """Must be made inside a running event loop."""
        self.node = node
        self.timeline = timeline
        self.worker = means.worker
        self._chronicle = Chronicle(timeline)
        self._tasks: asyncio.TaskGroup | None = None
        self.links = TensorLinks(
            means.server,
            means.dialer,
            on_frame=self._on_frame,
            on_sent=lambda header, since_s, s: self.pipeline.meter.sent(header, since_s, s),
            admit=self._is_member,
        )
        self._peer_links = PeerLinks(node, self.links)
        self._outbox = Outbox(node.view.me, self.links, self._on_frame, self._on_lost)
        self.steps = Steps(self._outbox)
        log_bytes = int(MAX_LOG_SHARE * means.memory_bytes)
        self.pipeline = Pipeline(
            self.worker, self._outbox, self._report_failure, log_bytes, self._on_wrong
        )
        self.holdings = Holdings(self.worker, means.memory_bytes, means.torch_device)
        folder = means.folder
        self.models = Models(node, means.dialer, folder / "models", timeline, settings.precision)
        self.library = self.models.library
        self.installer = Installer(
            node.view.me,
            self.library,
            self.holdings,
            self.pipeline,
            self.steps,
            timeline,
            self._meet,
        )
        self.coordinator = Coordinator(node, timeline)
        self.hand_over = HandOver(node, self.installer, self.pipeline, timeline)
        self.opener = Opener(node, self.library, self.installer, self.steps, timeline, settings)
        self.use = ModelUse(self.installer, self.holdings, self.models.fetcher)
        profiles = Profiles(
            node=node,
            links=self.links,
            library=self.library,
            worker=self.worker,
            folder=folder / "profiles",
            name=settings.name,
            threads=settings.threads,
            holdings=self.holdings,
        )
        MemberRole(
            node=node,
            installer=self.installer,
            coordinator=self.coordinator,
            profiles=means.measures or profiles,
            pipeline=self.pipeline,
            steps=self.steps,
            sharing=self.models.serve(means.server, self._is_member, self.use),
            meet=self._meet,
        )
        node.subscribe(self._on_event)
        node.watch_progress(lambda: self.pipeline.meter.is_stuck)

    @property
    def refused(self) -> Counter[str]:
        """What came late or out of turn (frames, answers, plans), by cause; none had an effect."""
        return self.pipeline.refused + self.steps.refused + self.installer.refused

    async def run(self) -> None:
        """Takes part until cancelled."""
        try:
            async with self.links, asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self.node.run())
                tasks.create_task(self._outbox.run())
                tasks.create_task(self.pipeline.run())
                tasks.create_task(self.coordinator.run())
        finally:
            await self.models.close()
            self.worker.close()

    # --- events of the mesh -----------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._chronicle.note(event, self.node.view)
        match event:
            case LinkUp(peer=peer) | PeerJoined(peer=peer):
                # A restart may be told as a death and a return on one and the same link.
                if not self.node.is_crowd:
                    self._spawn(self._peer_links.connect(peer))
            case PeerDied(peer=peer) | PeerLeft(peer=peer):
                self._forget(peer, event.reason)
            case PeerForgot(peer=peer):
                self._end_what_goes_through(peer, event.reason)
            case ViewChanged():
                self.coordinator.on_view_changed()

    def _meet(self, peers: Collection[PeerId]) -> None:
        """Of a crowd, only who computes together has tensor links."""
        for peer in peers if self.node.is_crowd else ():
            if peer != self.node.view.me:
                self._spawn(self._peer_links.connect(peer))

    def _forget(self, peer: PeerId, reason: str) -> None:
        """A device is gone: end what needs it, so that its sessions replay elsewhere at once."""
        self._spawn(self._peer_links.disconnect(peer))
        self._outbox.forget(peer)
        self.coordinator.on_gone(peer)
        self._end_what_goes_through(peer, reason)

    def _end_what_goes_through(self, peer: PeerId, reason: str) -> None:
        self.pipeline.forget(peer)
        member = self.node.view.find(peer)
        name = member.name if member else peer.short
        self.steps.interrupt(
            StaleEpoch(f"{name} is gone ({reason})"), lambda plan: peer in plan.devices
        )

    def _is_member(self, peer: PeerId) -> bool:
        return self.node.view.is_here(peer)

    # --- frames -----------------------------------------------------------------------------------

    def _on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        if frame.header.kind.to_owner:
            self.steps.on_frame(peer, frame)
        else:
            self.pipeline.on_frame(peer, frame)

    def _on_lost(self, header: FrameHeader, reason: str) -> None:
        """A step that could not be sent. Answers to an owner that is gone are no loss."""
        if header.kind.from_owner:
            failure = StepFailed(header.plan, header.session, reason, lost=True)
            self.steps.on_step_failed(failure)
        elif not header.kind.to_owner:
            self.pipeline.on_lost(header, reason)

    def _report_failure(self, owner: PeerId, failure: StepFailed) -> None:
        self.timeline.note("step-failed", failure.reason)
        self._spawn(self._tell_failure(owner, failure))

    async def _tell_failure(self, owner: PeerId, failure: StepFailed) -> None:
        with suppress(LinkError):  # an owner that is gone waits for nothing
            await self.node.notify(owner, STEP_FAILED, to_plain(failure))

    def _on_wrong(self, plan: Plan, device: PeerId, reason: str) -> None:
        """A device of a plan computes wrongly: the leader should plan without it."""
        member = self.node.view.find(device)
        name = member.name if member else device.short
        self.timeline.note("wrong", f"{name} sent {reason}")
        self._spawn(self._tell_leader(Blame(plan.model, plan.plan_id, device, reason)))

    async def _tell_leader(self, blame: Blame) -> None:
        with suppress(LinkError, TimeoutError):  # a new leader makes a new plan at any rate
            view = await self.node.wait_for(lambda view: view.leader is not None, LEADER_WAIT_S)
            assert view.leader is not None
            await self.node.notify(view.leader, BLAME_DEVICE, to_plain(blame))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(coroutine)
