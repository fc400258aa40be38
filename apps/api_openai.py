"""The OpenAI face: /v1/completions and /v1/models, as their clients expect them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from apps.generator import Completion, Generator, Piece, Prompt
from apps.http import BadRequest, error_body, read_json
from apps.library import Library
from mesh.errors import PotluckError
from runtime.sampling import Sampling

# What we would have to ignore although it changes the answer; a clear no is better.
_UNSUPPORTED = (
    *("suffix", "logprobs", "logit_bias", "best_of", "echo"),
    *("frequency_penalty", "presence_penalty"),
)
MAX_INT = (1 << 31) - 1
MAX_STOP_STRINGS = 4


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request body."""

    prompt: Prompt
    stream: bool
    include_usage: bool


class OpenAIRoutes:
    """Handlers over one generator."""

    def __init__(self, generator: Generator, library: Library) -> None:
        self._generator = generator
        self._library = library

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)

    async def models(self, request: web.Request) -> web.Response:
        names = await self._library.names()
        data = [{"id": name, "object": "model", "owned_by": "potluck"} for name in names]
        return web.json_response({"object": "list", "data": data})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        asked = parse_completion(await read_json(request))
        completion = await self._generator.complete(asked.prompt)
        answer = _Answer(completion)
        async with aclosing(completion.pieces()) as pieces:
            if asked.stream:
                return await self._stream(request, asked, answer, pieces)
            text, reason = "", None
            token_ids: list[int] = []
            async for piece in pieces:
                answer.count(piece)
                token_ids += piece.tokens
                text, reason = text + piece.text, piece.finish_reason
        return web.json_response(answer.body(text, token_ids, reason, usage=True))

    async def _stream(
        self,
        request: web.Request,
        asked: CompletionRequest,
        answer: _Answer,
        pieces: AsyncGenerator[Piece, None],
    ) -> web.StreamResponse:
        # The first piece is awaited before the status line, so that a refusal is a plain error.
        piece: Piece | None = await anext(pieces)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        try:
            while piece is not None:
                answer.count(piece)
                body = answer.body(piece.text, list(piece.tokens), piece.finish_reason)
                await _send(response, body)
                piece = await anext(pieces, None)
            if asked.include_usage:
                await _send(response, answer.usage_only())
            await response.write(b"data: [DONE]\n\n")
        except PotluckError as error:
            await _send(response, error_body(error))
        await response.write_eof()
        return response


class _Answer:
    """One answer's fixed fields and its count of tokens."""

    def __init__(self, completion: Completion) -> None:
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = completion.model
        self._prompt_tokens = completion.prompt_tokens
        self._completion_tokens = 0

    def count(self, piece: Piece) -> None:
        self._completion_tokens += len(piece.tokens)

    def body(
        self, text: str, token_ids: list[int], reason: str | None, *, usage: bool = False
    ) -> dict[str, Any]:
        """`token_ids` goes beyond OpenAI's form: the ids behind this piece of text."""
        choice = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
            "token_ids": token_ids,
        }
        extra = {"usage": self._usage()} if usage else {}
        return {**self._fixed(), "choices": [choice], **extra}

    def usage_only(self) -> dict[str, Any]:
        return {**self._fixed(), "choices": [], "usage": self._usage()}

    def _fixed(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
        }

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
        }


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """Raises BadRequest, which says which field is wrong and what it should be."""
    for name in _UNSUPPORTED:
        if not _is_off(name, body.get(name)):
            raise BadRequest(f"{name!r} is not supported")
    if body.get("n", 1) not in (None, 1):
        raise BadRequest("'n' must be 1")
    options = body.get("stream_options") or {}
    return CompletionRequest(
        Prompt(
            model=_field(body, "model", str),
            text=_prompt(body.get("prompt")),
            max_new_tokens=_max_tokens(body),
            sampling=_sampling(body),
            stop=_stop(body.get("stop")),
        ),
        stream=bool(body.get("stream", False)),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _is_off(name: str, value: object) -> bool:
    """Whether an option that we lack is set to what we do anyway."""
    if value is None or value is False or value == {}:
        return True
    return value == (1 if name == "best_of" else 0) and value is not True and name != "logprobs"


def _field(body: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = body.get(name)
    if value is None:
        value = default
    if kind is float and type(value) is int and abs(value) <= MAX_INT:
        value = float(value)
    if type(value) is not kind or (isinstance(value, int) and abs(value) > MAX_INT):
        raise BadRequest(f"{name!r} must be a {kind.__name__}, got {value!r:.80}")
    return value


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(map(_is_token, prompt)):
        return prompt
    raise BadRequest("'prompt' must be one string, or one list of token ids")


def _is_token(value: object) -> bool:
    return isinstance(value, int) and value is not True and 0 <= value <= MAX_INT


def _max_tokens(body: dict[str, Any]) -> int:
    count: int = _field(body, "max_tokens", int, 16)
    if count < 1:
        raise BadRequest(f"'max_tokens' must be at least 1, got {count}")
    return count


def _sampling(body: dict[str, Any]) -> Sampling:
    seed = _field(body, "seed", int, secrets.randbits(31))
    try:
        return Sampling(
            temperature=_field(body, "temperature", float, 1.0),
            top_k=_optional_int(body, "top_k"),
            top_p=_field(body, "top_p", float, 1.0),
            seed=seed,
        )
    except (PotluckError, ValueError) as error:
        raise BadRequest(str(error)) from None


def _optional_int(body: dict[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else int(_field(body, name, int))


def _stop(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOP_STRINGS
        or not all(isinstance(one, str) and one for one in stops)
    ):
        raise BadRequest(f"'stop' must be a string or a list of at most {MAX_STOP_STRINGS} strings")
    return tuple(stops)


async def _send(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
