"""The daemon: the composition root, the one place that knows mesh, planner and runtime together."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiohttp import web

from apps.api.http import make_app, serve_app
from apps.api.mesh import MeshRoutes
from apps.api.models import ModelRoutes
from apps.api.openai import OpenAIRoutes
from apps.chronicle import Chronicle
from apps.models.models import Models
from apps.models.use import ModelUse
from apps.opener import Opener
from apps.peer_links import PeerLinks
from apps.planning.coordinator import Coordinator
from apps.planning.installer import Installer
from apps.planning.member import MemberRole
from apps.planning.profiles import Profiles
from apps.settings import Settings, usable_memory_bytes
from apps.timeline import Timeline
from mesh.codec import to_plain
from mesh.config import StateFolder, erase, write_private
from mesh.errors import ConfigError, LinkError, PotluckError, StaleEpoch
from mesh.events import Event, LinkUp, PeerDied, PeerJoined, PeerLeft, ViewChanged
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.net.control import ControlTransport
from mesh.net.dialer import Dialer
from mesh.net.discovery import Discovery, choose_interfaces
from mesh.net.server import WebsocketServer
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node
from mesh.state_store import FileStore
from mesh.tensor_frame import FrameHeader, TensorFrame
from mesh.trust import MeshSecret, MeshTrust
from runtime.compute.torch_device import choose, free_bytes
from runtime.holdings import Holdings
from runtime.outbox import Outbox
from runtime.pipeline import Pipeline
from runtime.session_messages import STEP_FAILED, StepFailed
from runtime.steps import Steps
from runtime.worker import Worker

ANSWER_S = 0.2  # for the answer to `potluck leave` to get out


class Daemon:
    """One device of the mesh, from its sockets to its compute thread."""

    def __init__(self, settings: Settings, folder: StateFolder, secret: MeshSecret) -> None:
        """Must be made inside a running event loop."""
        self.settings = settings
        self.folder = folder
        self.api_port = settings.api_port
        self.timeline = Timeline()
        self._chronicle = Chronicle(self.timeline)
        self._secret = secret
        self._left = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

        identity = Identity.load(folder)
        self._trust = MeshTrust(identity, secret)
        self.torch_device = choose(settings.device)
        self._interfaces = choose_interfaces(settings.interfaces or None)
        if not self._interfaces.chosen:
            skipped = "; ".join(f"{one.name}: {one.reason}" for one in self._interfaces.skipped)
            raise ConfigError(
                f"no network interface faces the home ({skipped}); name one with --interface"
            )
        self._server = WebsocketServer(self._trust, self._interfaces.hosts, settings.port)
        self._dialer = dialer = Dialer(self._trust)
        self.node = Node(
            me=identity.peer,
            name=settings.name,
            transport=ControlTransport(self._server, dialer),
            store=FileStore(folder.path),
            rng=random.Random(),  # noqa: S311 - spreads retries and elections; no secret
        )
        self._links = TensorLinks(
            self._server,
            dialer,
            on_frame=self._on_frame,
            on_sent=lambda header, seconds: self._pipeline.meter.sent(header, seconds),
            admit=self._is_member,
        )
        self._peer_links = PeerLinks(self.node, self._links)
        self._compose()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the other devices reach this one."""
        return self._server.addresses

    def _compose(self) -> None:
        """The runtime and the leader's loop, on top of the node."""
        settings = self.settings
        self._worker = Worker(settings.threads)
        self._outbox = Outbox(self.node.view.me, self._links, self._on_frame, self._on_lost)
        self._steps = Steps(self._outbox)
        self._pipeline = Pipeline(self._worker, self._outbox, self._report_failure)
        self._holdings = Holdings(self._worker, self._memory_bytes(), self.torch_device)
        folder = self.folder.path / "models"
        self._models = Models(self.node, self._dialer, folder, self.timeline, settings.precision)
        self._library = self._models.library
        self._installer = Installer(
            self.node.view.me,
            self._library,
            self._holdings,
            self._pipeline,
            self._steps,
            self.timeline,
        )
        self._coordinator = Coordinator(self.node, self.timeline)
        self._opener = Opener(
            self.node, self._library, self._installer, self._steps, self.timeline, settings
        )
        profiles = Profiles(
            node=self.node,
            links=self._links,
            library=self._library,
            worker=self._worker,
            folder=self.folder.path / "profiles",
            name=settings.name,
            threads=settings.threads,
            holdings=self._holdings,
        )
        self._use = ModelUse(self._installer, self._holdings, self._models.fetcher)
        MemberRole(
            node=self.node,
            installer=self._installer,
            coordinator=self._coordinator,
            profiles=profiles,
            pipeline=self._pipeline,
            steps=self._steps,
            sharing=self._models.serve(self._server, self._is_member, self._use),
        )
        self.node.subscribe(self._on_event)

    async def run(self, ready: Callable[[Daemon], None]) -> None:
        """Takes part until cancelled or told to leave; `ready` is called once, when it is up.

        Raises ConfigError for a port that is taken.
        """
        runner = await self._start_api()
        try:
            async with self._links, asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                running = [
                    tasks.create_task(coroutine)
                    for coroutine in (
                        self.node.run(),
                        self._outbox.run(),
                        self._pipeline.run(),
                        self._coordinator.run(),
                        self._meet(),
                        self._plan_early(),
                    )
                ]
                address = await self.node.started()
                self._write_daemon_file(str(address))
                ready(self)
                await self._left.wait()
                for task in running:
                    task.cancel()
        finally:
            await self._models.close()
            self._worker.close()
            erase(self.folder.daemon)
            await runner.cleanup()

    # --- finding the others -----------------------------------------------------------------------

    async def _meet(self) -> None:
        """Every path to the others: addresses given, addresses remembered, mDNS."""
        address = await self.node.started()
        for peer_address in self.settings.peers:
            self.node.hint(peer_address)
        discovery = Discovery(
            own=self.node.view.me,
            name=self.settings.name,
            tag=self._trust.tag,
            port=address.port,
            interfaces=self._interfaces.chosen,
            on_hint=self.node.hint,
            on_other=lambda text: self.timeline.note("other", text),
            on_trouble=lambda text: self.timeline.note("trouble", text),
        )
        await discovery.run()

    async def _plan_early(self) -> None:
        """With --model: a plan in force before the first request."""
        if self.settings.model is None:
            return
        await self.node.started()
        try:
            opened = await self._opener.open(self.settings.model)
            await opened.road.plan()
        except PotluckError as error:
            self.timeline.note("no-plan", str(error))

    # --- events of the mesh -----------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._chronicle.note(event, self.node.view)
        match event:
            case LinkUp(peer=peer) | PeerJoined(peer=peer):
                # A restart may be told as a death and a return on one and the same link.
                self._spawn(self._peer_links.connect(peer))
            case PeerDied(peer=peer) | PeerLeft(peer=peer):
                self._forget(peer, event.reason)
            case ViewChanged():
                self._coordinator.on_view_changed()

    def _forget(self, peer: PeerId, reason: str) -> None:
        """A device is gone: end what needs it, so that its sessions replay elsewhere at once."""
        self._spawn(self._peer_links.disconnect(peer))
        self._outbox.forget(peer)
        self._pipeline.forget(peer)
        self._coordinator.on_gone(peer)
        member = self.node.view.find(peer)
        name = member.name if member else peer.short
        self._steps.interrupt(
            StaleEpoch(f"{name} is gone ({reason})"), lambda plan: peer in plan.devices
        )

    def _is_member(self, peer: PeerId) -> bool:
        return self.node.view.is_here(peer)

    # --- frames -----------------------------------------------------------------------------------

    def _on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        if frame.header.kind.to_owner:
            self._steps.on_frame(peer, frame)
        else:
            self._pipeline.on_frame(peer, frame)

    def _on_lost(self, header: FrameHeader, reason: str) -> None:
        """A step that could not be sent. Answers to an owner that is gone are no loss."""
        if header.kind.from_owner:
            failure = StepFailed(header.plan, header.session, reason, lost=True)
            self._steps.on_step_failed(failure)
        elif not header.kind.to_owner:
            self._pipeline.on_lost(header, reason)

    def _report_failure(self, owner: PeerId, failure: StepFailed) -> None:
        self.timeline.note("step-failed", failure.reason)
        self._spawn(self._tell_failure(owner, failure))

    async def _tell_failure(self, owner: PeerId, failure: StepFailed) -> None:
        with suppress(LinkError):  # an owner that is gone waits for nothing
            await self.node.notify(owner, STEP_FAILED, to_plain(failure))

    # --- the local API ----------------------------------------------------------------------------

    async def _start_api(self) -> web.AppRunner:
        app = make_app()
        OpenAIRoutes(self._opener, self._library).add_to(app)
        ModelRoutes(self.node, self._library, self._models.pulls, self._use).add_to(app)
        MeshRoutes(
            node=self.node,
            links=self._links,
            opener=self._opener,
            installer=self._installer,
            holdings=self._holdings,
            pipeline=self._pipeline,
            timeline=self.timeline,
            settings=self.settings,
            secret=self._secret,
            leave=self._leave,
        ).add_to(app)
        runner, self.api_port = await serve_app(app, self.settings.api_port)
        return runner

    def _write_daemon_file(self, address: str) -> None:
        record = {"pid": os.getpid(), "api_port": self.api_port, "address": address}
        write_private(self.folder.daemon, json.dumps(record).encode())

    async def stop(self) -> None:
        """Says goodbye, so that the others need not find out, and ends `run`."""
        await self.node.leave()
        self._left.set()

    async def _leave(self) -> None:
        """Stops, and forgets the mesh for good."""
        await self.node.leave()
        MeshSecret.erase(self.folder)
        asyncio.get_running_loop().call_later(ANSWER_S, self._left.set)

    def _memory_bytes(self) -> int:
        asked = self.settings.memory_bytes
        return usable_memory_bytes(free_bytes(self.torch_device)) if asked is None else asked

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(coroutine)
