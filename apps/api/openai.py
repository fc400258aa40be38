"""The OpenAI face: completions, chats, embeddings, transcriptions and models, as their clients
expect them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from apps.api.http import error_body, read_json
from apps.api.openai_answers import ChatAnswer, CompletionAnswer
from apps.api.openai_audio import read_transcription
from apps.api.openai_embeddings import embeddings_text, parse_embeddings
from apps.api.openai_requests import CompletionRequest, parse_chat, parse_completion
from apps.completion import Piece
from apps.embedder import Embedder
from apps.generator import Generator
from apps.models.library import Library
from apps.opener import Opener
from apps.transcriber import Transcriber
from mesh.errors import ModelNotFound, PotluckError


class OpenAIRoutes:
    """Handlers over what this device can be asked for."""

    def __init__(self, opener: Opener, library: Library) -> None:
        self._generator = Generator(opener)
        self._embedder = Embedder(opener)
        self._transcriber = Transcriber(opener)
        self._library = library

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_post("/v1/audio/transcriptions", self.transcriptions)
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

    async def embeddings(self, request: web.Request) -> web.Response:
        asked = parse_embeddings(await read_json(request))
        found = await self._embedder.embed(asked.model, asked.texts)
        text = await asyncio.to_thread(embeddings_text, asked, found)
        return web.json_response(text=text)

    async def transcriptions(self, request: web.Request) -> web.Response:
        asked = await read_transcription(request)
        text = await self._transcriber.transcribe(
            asked.model, asked.wav, asked.language, asked.sampling
        )
        if asked.as_text:
            return web.Response(text=f"{text}\n")
        return web.json_response({"text": text})

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
