"""The models' face of the local API: what is here and on the others, and how it comes and goes."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from aiohttp import web

from apps.api.http import BadRequest, error_body, read_json
from apps.ask import hear_members
from apps.models.library import Library
from apps.models.messages import (
    LIST_MODELS,
    LOADED_MODEL,
    TRANSFERS,
    Loaded,
    ModelList,
    Transfers,
)
from apps.models.pulls import Pulls
from apps.models.use import ModelUse
from mesh.errors import PotluckError
from mesh.node import Node

ASK_TIMEOUT_S = 3.0  # a device that is slower is shown without what it has


class ModelRoutes:
    """Handlers over this device's models, and questions to the other members."""

    def __init__(self, node: Node, library: Library, pulls: Pulls, use: ModelUse) -> None:
        self._node = node
        self._library = library
        self._pulls = pulls
        self._use = use

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/potluck/models", self.models)
        app.router.add_get("/potluck/ps", self.loaded)
        app.router.add_get("/potluck/transfers", self.transfers)
        app.router.add_post("/potluck/pull", self.pull)
        app.router.add_post("/potluck/rm", self.remove)

    async def models(self, request: web.Request) -> web.Response:
        """Every model of the mesh, and which devices have it, whole or in part."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for device, answer in await self._ask_all(LIST_MODELS, ModelList):
            for held in answer.models:
                entry = found.setdefault(
                    (held.name, held.model),
                    {
                        "name": held.name,
                        "model": str(held.model),
                        "purpose": held.purpose,
                        "size_bytes": held.size_bytes,
                        "origin": held.origin,
                        "devices": [],
                    },
                )
                entry["purpose"] = entry["purpose"] or held.purpose
                entry["devices"].append({**device, "have_bytes": held.have_bytes})
        models = [found[key] for key in sorted(found)]
        return web.json_response({"device": str(self._node.view.me), "models": models})

    async def loaded(self, request: web.Request) -> web.Response:
        """What each device holds in memory."""
        answers = await self._ask_all(LOADED_MODEL, Loaded)
        return web.json_response(
            {"devices": [{**device, **asdict(answer)} for device, answer in answers]}
        )

    async def transfers(self, request: web.Request) -> web.Response:
        """What is on its way to which device, from whom, how fast."""
        return web.json_response(
            {
                "transfers": [
                    {**device, **asdict(state)}
                    for device, answer in await self._ask_all(TRANSFERS, Transfers)
                    for state in answer.transfers
                ]
            }
        )

    async def pull(self, request: web.Request) -> web.StreamResponse:
        """Brings a model onto this device's disk; server-sent events say how far it is."""
        source = (await read_json(request)).get("source")
        if not isinstance(source, str) or not source:
            raise BadRequest("'source' must be a name, a path, or OWNER/REPO[:FILE] on the hub")
        async with aclosing(self._pulls.pull(source)) as progress:
            # The first report is awaited before the status line: a refusal is a plain error.
            first = await anext(progress)
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            )
            await response.prepare(request)
            try:
                await _send(response, first)
                async for report in progress:
                    await _send(response, report)
                await response.write(b"data: [DONE]\n\n")
            except PotluckError as error:
                await _send(response, error_body(error))
        await response.write_eof()
        return response

    async def remove(self, request: web.Request) -> web.Response:
        """Removes a model from this device's folder. Refuses while it is in use."""
        name = (await read_json(request)).get("name")
        if not isinstance(name, str) or not name:
            raise BadRequest("'name' must be the name of a model, as `potluck list` shows it")
        freed = await self._library.remove(name, self._use.why)
        return web.json_response({"removed": name, "freed_bytes": freed})

    async def _ask_all(self, topic: str, kind: Any) -> list[tuple[dict[str, Any], Any]]:
        """Who, and its answer."""
        return [
            ({"id": str(member.peer), "device": member.name}, answer)
            for member, answer in await hear_members(self._node, topic, kind, ASK_TIMEOUT_S)
        ]


async def _send(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
