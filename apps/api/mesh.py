"""The mesh face: /potluck/..., what the command and other local programs ask of this device."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web

from apps.api.http import BadRequest
from apps.ask import hear_members
from apps.opener import Opener
from apps.planning.comparison import compared, measured_as_dict
from apps.planning.installer import Installer
from apps.planning.messages import PREVIEW_PLAN, REPORT_EFFORTS, EffortsReport, Known
from apps.planning.preview import plan_as_dict
from apps.settings import Settings
from apps.timeline import Timeline
from mesh.codec import to_plain
from mesh.errors import NoLeader
from mesh.ids import PeerId
from mesh.net.credentials import Credentials
from mesh.net.tensor_links import TensorLinks
from mesh.node import Node
from runtime.holdings import Holdings
from runtime.pipeline import Pipeline

PREVIEW_TIMEOUT_S = 300.0  # the first preview measures every device
EVENTS_WAIT_S = 25.0  # a long poll; shorter than what proxies and clients give up at
LEADER_WAIT_S = 5.0
ASK_TIMEOUT_S = 3.0  # a device that is slower is shown without what it measured


class MeshRoutes:
    """Handlers over one device's parts."""

    def __init__(
        self,
        *,
        node: Node,
        links: TensorLinks,
        opener: Opener,
        installer: Installer,
        holdings: Holdings,
        pipeline: Pipeline,
        timeline: Timeline,
        settings: Settings,
        credentials: Credentials,
        leave: Callable[[], Awaitable[None]],
        trouble: Callable[[], str],
        refused: Callable[[], Mapping[str, int]],
    ) -> None:
        """`trouble`: what a person should mend on this device, in words; empty for nothing."""
        self._node = node
        self._links = links
        self._opener = opener
        self._installer = installer
        self._holdings = holdings
        self._pipeline = pipeline
        self._timeline = timeline
        self._settings = settings
        self._credentials = credentials
        self._leave = leave
        self._trouble = trouble
        self._refused = refused

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/potluck/status", self.status)
        app.router.add_get("/potluck/plan", self.plan)
        app.router.add_get("/potluck/efforts", self.efforts)
        app.router.add_get("/potluck/events", self.events)
        app.router.add_post("/potluck/leave", self.leave)

    async def status(self, request: web.Request) -> web.Response:
        """Who is here, who leads, what runs where, and what this device holds and has refused."""
        view = self._node.view
        known = self._installer.report().known
        return web.json_response(
            {
                "device": {"id": str(view.me), "name": self._settings.name},
                "mesh": {
                    "leader": view.leader,
                    "epoch": view.epoch.counter if view.epoch else None,
                    "version": view.version,
                    "generation": self._credentials.keyring.generation,
                    "members": [self._member(member.peer, known) for member in view.members],
                },
                "plans": [
                    {
                        **plan_as_dict(one.plan),
                        "conversations": one.conversations,
                        "idle_s": one.idle_s,
                    }
                    for one in known
                ],
                "holds": {
                    "bytes": self._holdings.size_bytes,
                    "limit_bytes": self._holdings.memory_bytes,
                },
                "efforts": [measured_as_dict(one) for one in self._pipeline.meter.measured],
                "conversations": self._pipeline.conversations,
                "refused": dict(self._refused()),
                "tasks": len(asyncio.all_tasks()),
                "trouble": self._trouble(),
            }
        )

    async def plan(self, request: web.Request) -> web.Response:
        """Every candidate for a model, and the one that would be chosen. Installs nothing."""
        model = request.query.get("model")
        if not model:
            raise BadRequest("name the model: /potluck/plan?model=NAME")
        wish = (await self._opener.open(model)).wish
        try:
            view = await self._node.wait_for(
                lambda view: view.leader is not None, timeout_s=LEADER_WAIT_S
            )
        except TimeoutError:
            raise NoLeader("the mesh has no leader yet; try again in a moment") from None
        assert view.leader is not None
        body = await self._node.request(
            view.leader, PREVIEW_PLAN, to_plain(wish), PREVIEW_TIMEOUT_S
        )
        return web.json_response(body)

    async def efforts(self, request: web.Request) -> web.Response:
        """What each device of each plan was expected to do in a pass, and what it measured."""
        reports = await hear_members(self._node, REPORT_EFFORTS, EffortsReport, ASK_TIMEOUT_S)
        names = {member.peer: member.name for member in self._node.view.members}
        models = []
        for known in self._installer.report().known:
            told = {
                member.peer: one
                for member, report in reports
                for one in report.measured
                if one.plan == known.plan.plan_id
            }
            models.append(compared(known.plan, told, names))
        return web.json_response({"device": str(self._node.view.me), "models": models})

    async def events(self, request: web.Request) -> web.Response:
        """The timeline after event `since`; with `wait=1` it answers when there is something."""
        try:
            since = int(request.query.get("since", "0"))
        except ValueError:
            raise BadRequest("'since' must be the number of an event") from None
        events = self._timeline.since(since)
        if not events and request.query.get("wait") == "1":
            try:
                async with asyncio.timeout(EVENTS_WAIT_S):
                    events = await self._timeline.wait_since(since)
            except TimeoutError:
                pass  # nothing happened; the client asks again
        return web.json_response({"events": [asdict(event) for event in events]})

    async def leave(self, request: web.Request) -> web.Response:
        """Says goodbye to the others and forgets the mesh; the daemon ends after the answer."""
        await self._leave()
        return web.json_response({"left": True})

    def _member(self, peer: PeerId, known: Sequence[Known]) -> dict[str, Any]:
        member = self._node.view.find(peer)
        assert member is not None
        spans = [(one.plan.model_name, one.plan.layers_of(peer)) for one in known]
        stats = asdict(self._links.stats(peer)) if peer != self._node.view.me else None
        return {
            "id": str(member.peer),
            "name": member.name,
            "health": member.health.value,
            "degraded": peer in self._node.view.degraded,
            "incarnation": member.incarnation,
            "address": str(member.address) if member.address else None,
            "shares": [
                {"model": name, "layers": [span.first, span.last]} for name, span in spans if span
            ],
            "link": stats,
        }
