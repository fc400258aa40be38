"""What OpenAI's clients ask for: bodies of /v1/completions and /v1/chat/completions, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apps.api.fields import (
    MAX_INT,
    at_least_one,
    field,
    is_token,
    optional_int,
    sampling_of,
    stop_strings,
)
from apps.api.http import BadRequest
from apps.completion import Prompt
from runtime.chat.messages import Chat
from runtime.chosen import MAX_LOGPROBS

# What we would have to ignore although it changes the answer; a clear no is better. Beside each,
# what it may say because it is what we do anyway.
_COMPLETION_LACKS: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "echo": (False,),
    "n": (1,),
}
_CHAT_LACKS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tool_choice": ("none", "auto"),
    "prediction": (),
    "web_search_options": (),
}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request body."""

    prompt: Prompt
    stream: bool
    include_usage: bool


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """Raises BadRequest, which says which field is wrong and what it should be."""
    _refuse(body, _COMPLETION_LACKS)
    logprobs = body.get("logprobs")
    if logprobs is False:
        logprobs = None
    if logprobs is not None and (type(logprobs) is not int or not 0 <= logprobs <= MAX_LOGPROBS):
        raise BadRequest(f"'logprobs' must be a number from 0 to {MAX_LOGPROBS}")
    return _request(body, _text(body.get("prompt")), at_least_one(body, "max_tokens", 16), logprobs)


def parse_chat(body: dict[str, Any]) -> CompletionRequest:
    """Raises BadRequest, or BadPrompt for what is wrong with the messages."""
    _refuse(body, _CHAT_LACKS)
    tools = body.get("tools") if body.get("tool_choice") != "none" else None
    template = None if body.get("chat_template") is None else field(body, "chat_template", str)
    chat = Chat.read(body.get("messages"), tools, template, body.get("chat_template_kwargs"))
    named = body.get("max_completion_tokens") is not None
    name = "max_completion_tokens" if named else "max_tokens"
    most = at_least_one(body, name, MAX_INT)  # until the context is full
    return _request(body, chat, most, _chat_logprobs(body))


def _request(
    body: dict[str, Any], text: str | list[int] | Chat, most: int, logprobs: int | None
) -> CompletionRequest:
    options = body.get("stream_options") or {}
    return CompletionRequest(
        Prompt(
            model=field(body, "model", str),
            text=text,
            max_new_tokens=most,
            sampling=sampling_of(body, logprobs),
            stop=stop_strings(body.get("stop")),
        ),
        stream=bool(body.get("stream", False)),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _refuse(body: dict[str, Any], lacks: dict[str, tuple[Any, ...]]) -> None:
    for name, same in lacks.items():
        value = body.get(name)
        if value is None or any(type(value) is type(one) and value == one for one in same):
            continue
        meant = " or ".join(repr(one) for one in same)
        raise BadRequest(
            f"{name!r} must be {meant}, or left out: other values are not supported"
            if same
            else f"{name!r} is not supported"
        )


def _chat_logprobs(body: dict[str, Any]) -> int | None:
    """How many of the most probable tokens are told with each one; None for not even its own."""
    top = optional_int(body, "top_logprobs")
    if not field(body, "logprobs", bool, False):
        if top:
            raise BadRequest("'top_logprobs' needs 'logprobs' to be true")
        return None
    return top or 0


def _text(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(map(is_token, prompt)):
        return prompt
    raise BadRequest("'prompt' must be one string, or one list of token ids")
