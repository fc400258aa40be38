"""The messages of a conversation, as clients send them, checked before a template sees them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.errors import BadPrompt
from runtime.chat.shield import cleaned

ROLES: Final = ("system", "user", "assistant", "tool")
MAX_MESSAGES: Final = 4096
MAX_TOOLS: Final = 256
_TEXTS: Final = ("name", "tool_call_id", "reasoning_content")  # passed on where they are there
# What a template gets from us; an option of a client's cannot take its place.
_RESERVED: Final = frozenset(
    ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "unk_token")
)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that waits for an answer: plain JSON values, checked and bounded."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    template: str | None = None  # the name of a built-in one; the file's own otherwise
    options: dict[str, Any] = field(default_factory=dict)  # further variables of the template

    @classmethod
    def read(
        cls, messages: Any, tools: Any = None, template: str | None = None, options: Any = None
    ) -> Chat:
        """Raises BadPrompt, which names the message and what is wrong with it."""
        if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
            raise BadPrompt(f"'messages' must be a list of 1 to {MAX_MESSAGES} messages")
        return cls(
            tuple(_message(index, message) for index, message in enumerate(messages)),
            tuple(_tools(tools)),
            template,
            _options(options),
        )


def _message(index: int, message: Any) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise BadPrompt(f"{where} must be an object with 'role' and 'content'")
    role = message.get("role")
    if role == "developer":  # OpenAI's newer word for system; the templates of open models lack it
        role = "system"
    if role not in ROLES:
        raise BadPrompt(f"{where}.role must be one of {', '.join(ROLES)}; got {role!r:.60}")
    calls = message.get("tool_calls")
    read: dict[str, Any] = {"role": role}
    read["content"] = _content(where, message.get("content"), optional=role == "assistant")
    for key in _TEXTS:
        if (value := message.get(key)) is not None:
            read[key] = _text(f"{where}.{key}", value)
    if calls is not None and role == "assistant":
        read["tool_calls"] = _calls(f"{where}.tool_calls", calls)
    return read


def _content(where: str, content: Any, *, optional: bool) -> str:
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return _text(where, content)
    if not isinstance(content, list):
        raise BadPrompt(f"{where}.content must be a text, or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadPrompt(
                f"{where}.content may hold parts of the type 'text' only; got {kind!r:.60}"
            )
        texts.append(_text(where, part["text"]))
    return "\n".join(texts)


def _calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """With the arguments as an object, which is what templates expect; clients send its text."""
    if not isinstance(calls, list) or len(calls) > MAX_TOOLS:
        raise BadPrompt(f"{where} must be a list of at most {MAX_TOOLS} calls")
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadPrompt(f"each of {where} must be an object with function.name")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, dict):
            raise BadPrompt(f"function.arguments in {where} must be a JSON object, or its text")
        kept = {key: call[key] for key in ("id", "type") if isinstance(call.get(key), str)}
        read.append({**kept, "function": {"name": function["name"], "arguments": arguments}})
    cleaned_calls: list[dict[str, Any]] = cleaned(read)
    return cleaned_calls


def _tools(tools: Any) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise BadPrompt(f"'tools' must be a list of at most {MAX_TOOLS} tools")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadPrompt("each of 'tools' must be an object with function.name")
    cleaned_tools: list[dict[str, Any]] = cleaned(tools)
    return cleaned_tools


def _options(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict) or _RESERVED & options.keys():
        raise BadPrompt(
            "'chat_template_kwargs' must be an object, without "
            f"{', '.join(sorted(_RESERVED))}: these come from the request and the model"
        )
    cleaned_options: dict[str, Any] = cleaned(options)
    return cleaned_options


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadPrompt(f"{where} must be a text; got {value!r:.60}")
    return str(cleaned(value))
