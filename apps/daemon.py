"""The daemon: one device as a process, with its sockets, its disk, its thread and its API."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable

from aiohttp import web

from apps.api.http import make_app, serve_app
from apps.api.mesh import MeshRoutes
from apps.api.models import ModelRoutes
from apps.api.openai import OpenAIRoutes
from apps.engine import Engine, Means
from apps.settings import Settings, usable_memory_bytes
from apps.timeline import Timeline
from apps.trusting import Trusting
from mesh.config import StateFolder, erase, write_private
from mesh.errors import ConfigError, PotluckError
from mesh.identity import Identity
from mesh.ids import Address
from mesh.keyring import Keyring
from mesh.net.control import ControlTransport
from mesh.net.credentials import Credentials
from mesh.net.dialer import Dialer
from mesh.net.discovery import choose_interfaces
from mesh.net.server import WebsocketServer
from mesh.node import Node
from mesh.state_store import FileStore
from runtime.compute.torch_device import choose, free_bytes
from runtime.worker import Worker

ANSWER_S = 0.2  # for the answer to `potluck leave` to get out


class Daemon:
    """One device of the mesh, from its sockets to its compute thread."""

    def __init__(self, settings: Settings, folder: StateFolder, keyring: Keyring) -> None:
        """Must be made inside a running event loop."""
        self.settings = settings
        self.folder = folder
        self.api_port = settings.api_port
        self.timeline = Timeline()
        self._left = asyncio.Event()

        identity = Identity.load(folder)
        self._credentials = Credentials(identity, keyring, folder)
        self.torch_device = choose(settings.device)
        self._interfaces = choose_interfaces(settings.interfaces or None)
        if not self._interfaces.chosen:
            skipped = "; ".join(f"{one.name}: {one.reason}" for one in self._interfaces.skipped)
            raise ConfigError(
                f"no network interface faces the home ({skipped}); name one with --interface"
            )
        trust = self._credentials.trust
        self._server = WebsocketServer(trust, self._interfaces.hosts, settings.port)
        self._dialer = dialer = Dialer(trust)
        self._store = FileStore(folder.path, lambda text: self.timeline.note("trouble", text))
        self.node = Node(
            me=identity.peer,
            name=settings.name,
            transport=ControlTransport(self._server, dialer),
            store=self._store,
            rng=random.Random(),  # noqa: S311 - spreads retries and elections; no secret
        )
        means = Means(
            folder=folder.path,
            server=self._server,
            dialer=dialer,
            worker=Worker(settings.threads),
            torch_device=self.torch_device,
            memory_bytes=self._memory_bytes(),
        )
        self._trusting = Trusting(
            self.node,
            self._server,
            dialer,
            self._credentials,
            settings.name,
            self._interfaces.chosen,
            self.timeline,
        )
        self._engine = Engine(settings, self.node, means, self.timeline)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the other devices reach this one."""
        return self._server.addresses

    async def run(self, ready: Callable[[Daemon], None]) -> None:
        """Takes part until cancelled or told to leave; `ready` is called once, when it is up.

        Raises ConfigError for a port that is taken.
        """
        runner = await self._start_api()
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(coroutine)
                    for coroutine in (
                        self._engine.run(),
                        self._trusting.run(),
                        self._plan_early(),
                    )
                ]
                await self.node.started()
                for hinted in self.settings.peers:
                    self.node.hint(hinted)
                self._write_daemon_file()
                ready(self)
                await self._left.wait()
                for task in running:
                    task.cancel()
        finally:
            erase(self.folder.daemon)
            await runner.cleanup()

    async def _plan_early(self) -> None:
        """With --model: a plan in force before the first request."""
        if self.settings.model is None:
            return
        await self.node.started()
        try:
            opened = await self._engine.opener.open(self.settings.model)
            await opened.road.plan()
        except PotluckError as error:
            self.timeline.note("no-plan", str(error))

    # --- the local API ----------------------------------------------------------------------------

    async def _start_api(self) -> web.AppRunner:
        app, engine = make_app(), self._engine
        OpenAIRoutes(engine.opener, engine.library).add_to(app)
        ModelRoutes(self.node, engine.library, engine.models.pulls, engine.use).add_to(app)
        MeshRoutes(
            node=self.node,
            links=engine.links,
            opener=engine.opener,
            installer=engine.installer,
            holdings=engine.holdings,
            pipeline=engine.pipeline,
            timeline=self.timeline,
            settings=self.settings,
            credentials=self._credentials,
            leave=self._leave,
            trouble=lambda: self._store.trouble,
            refused=lambda: engine.refused,
        ).add_to(app)
        self._trusting.routes.add_to(app)
        runner, self.api_port = await serve_app(app, self.settings.api_port)
        return runner

    def _write_daemon_file(self) -> None:
        addresses = [str(address) for address in self.addresses]
        record = {"pid": os.getpid(), "api_port": self.api_port, "addresses": addresses}
        write_private(self.folder.daemon, json.dumps(record).encode())

    async def hand_over(self) -> None:
        """Before `stop`: the others' conversations go on without this device. Takes a while, and
        may be cancelled.
        """
        await self._engine.hand_over.run()

    async def stop(self) -> None:
        """Says goodbye, so that the others need not find out, and ends `run`."""
        self.timeline.note("leaving", "this device says goodbye")
        await self.node.leave()
        self._left.set()

    async def _leave(self) -> None:
        """Stops, and forgets the mesh for good."""
        await self.hand_over()
        await self._trusting.say_goodbye()
        await self.node.leave()
        self._credentials.erase()
        asyncio.get_running_loop().call_later(ANSWER_S, self._left.set)

    def _memory_bytes(self) -> int:
        asked = self.settings.memory_bytes
        return usable_memory_bytes(free_bytes(self.torch_device)) if asked is None else asked
