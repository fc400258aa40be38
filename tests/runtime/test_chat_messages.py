"""Messages as clients send them: what is taken, and which is wrong and why."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import BadPrompt
from runtime.chat.messages import MAX_MESSAGES, Chat


def one(**fields: Any) -> dict[str, Any]:
    return Chat.read([{"role": "user", "content": "x", **fields}]).messages[0]


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "hat"}]
    assert one(content=parts)["content"] == "the\nhat"


def test_a_developer_speaks_as_the_system() -> None:
    assert one(role="developer")["role"] == "system"


def test_an_assistant_may_call_without_a_word() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = one(role="assistant", content=None, tool_calls=[call], refusal=None, audio=None)
    assert message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        ],
    }


def test_half_a_surrogate_pair_is_no_letter() -> None:
    assert one(content="a\ud83d")["content"] == "a\ufffd"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "'messages' must be a list"),
        ([], "'messages' must be a list of 1 to"),
        ([{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), "list of 1 to 4096"),
        (["x"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\].role must be one of system, user"),
        ([{"role": "function", "content": "x"}], "role must be one of"),
        ([{"role": {}, "content": "x"}], "role must be one of"),
        ([{"role": "user"}], r"messages\[0\].content must be a text, or a list"),
        ([{"role": "user", "content": 5}], "content must be a text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "parts of the type 'text' only; got 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "type 'text' only"),
        ([{"role": "user", "content": ["x"]}], "type 'text' only"),
        ([{"role": "user", "content": "x", "name": 5}], r"messages\[0\].name must be a text"),
        ([{"role": "assistant", "tool_calls": {}}], "must be a list of at most"),
        ([{"role": "assistant", "tool_calls": [{}]}], "object with function.name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}],
            "arguments in .* must be a JSON object",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_message_that_is_none_is_told_in_words(messages: Any, words: str) -> None:
    with pytest.raises(BadPrompt, match=words):
        Chat.read(messages)


@pytest.mark.parametrize(
    "tools", [{}, ["x"], [{}], [{"function": {"name": 5}}], [{}] * 257], ids=str
)
def test_tools_that_are_none(tools: Any) -> None:
    with pytest.raises(BadPrompt, match="'tools'"):
        Chat.read([{"role": "user", "content": "x"}], tools)


def test_tools_that_nest_without_end() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    tools = [{"function": {"name": "f", "parameters": deep}}]
    with pytest.raises(BadPrompt, match="nest at most 32"):
        Chat.read([{"role": "user", "content": "x"}], tools)


@pytest.mark.parametrize("options", ["x", {"messages": []}, {"bos_token": ""}], ids=str)
def test_options_that_would_replace_ours(options: Any) -> None:
    with pytest.raises(BadPrompt, match="'chat_template_kwargs' must be an object"):
        Chat.read([{"role": "user", "content": "x"}], options=options)
