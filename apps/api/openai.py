"""The OpenAI face: completions, chats and models, as their clients expect them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from apps.api.http import error_body, read_json
from apps.api.openai_answers import ChatAnswer, CompletionAnswer
from apps.api.openai_requests import CompletionRequest, parse_chat, parse_completion
from apps.generator import Generator, Piece
from apps.models.library import Library
from mesh.errors import ModelNotFound, PotluckError


class OpenAIRoutes:
    """Handlers over one generator."""

    def __init__(self, generator: Generator, library: Library) -> None:
        self._generator = generator
        self._library = library

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name:.+}", self.model)

    async def models(self, request: web.Request) -> web.Response:
        data = [_model(name) for name in await self._library.names()]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in (known := await self._library.names()):
            raise ModelNotFound(
                f"no model is called {name!r:.80}; known here: {', '.join(known) or 'none'}"
            )
        return web.json_response(_model(name))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        asked = parse_completion(await read_json(request))
        return await self._run(request, asked, CompletionAnswer)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = parse_chat(await read_json(request))
        return await self._run(request, asked, ChatAnswer)

    async def _run(
        self, request: web.Request, asked: CompletionRequest, form: type[CompletionAnswer]
    ) -> web.StreamResponse:
        completion = await self._generator.complete(asked.prompt)
        answer = form(completion)
        async with aclosing(completion.pieces()) as pieces:
            if asked.stream:
                return await _stream(request, asked, answer, pieces)
            whole = [piece async for piece in pieces]
        return web.json_response(answer.whole(whole))


async def _stream(
    request: web.Request,
    asked: CompletionRequest,
    answer: CompletionAnswer,
    pieces: AsyncGenerator[Piece, None],
) -> web.StreamResponse:
    # The first piece is awaited before the status line, so that a refusal is a plain error.
    piece: Piece | None = await anext(pieces)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    try:
        await _send(response, *answer.opening())
        while piece is not None:
            await _send(response, *answer.events(piece))
            piece = await anext(pieces, None)
        if asked.include_usage:
            await _send(response, answer.usage_only())
        await response.write(b"data: [DONE]\n\n")
    except PotluckError as error:
        await _send(response, error_body(error))
    await response.write_eof()
    return response


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "potluck"}


async def _send(response: web.StreamResponse, *bodies: dict[str, Any]) -> None:
    for body in bodies:
        await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
