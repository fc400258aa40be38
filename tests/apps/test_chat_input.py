"""What a person types in a chat, and what counts as one message."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from apps.chat_input import PROMPT, PROMPT_MORE, ReadLine, line_reader, message
from mesh.errors import ConfigError


class Typed:
    """Lines, and the prompts that were shown for them."""

    def __init__(self, *lines: str) -> None:
        self._lines: Iterator[str] = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        for line in self._lines:
            return line
        raise EOFError


def messages(read: ReadLine) -> list[str]:
    """All of them."""
    found = []
    with suppress(EOFError):
        while True:
            found.append(message(read))
    return found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("one", "two"), ["one", "two"]),
        (("", "  ", "one"), ["", "  ", "one"]),
        (("one\\", "two", "three"), ["one\ntwo", "three"]),
        (("one\\",), ["one"]),  # the input ends in the middle: what was typed counts
        (('"""one', "", 'two"""', "three"), ["one\n\ntwo", "three"]),
        (('"""one"""',), ["one"]),
        (('"""', "one\\", '"""'), ["one\\"]),
        (('"""one', "two"), ["one\ntwo"]),
        ((), []),
    ],
    ids=str,
)
def test_messages_of_one_or_more_lines(lines: tuple[str, ...], expected: list[str]) -> None:
    assert messages(Typed(*lines)) == expected


def test_the_prompt_says_that_a_message_goes_on() -> None:
    typed = Typed("one\\", "two")
    messages(typed)
    assert typed.prompts == [PROMPT, PROMPT_MORE, PROMPT]


def test_what_is_piped_in_is_read_without_a_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\\\nthree"))
    assert messages(line_reader()) == ["one", "two\nthree"]
    assert capsys.readouterr().out == ""


def test_what_is_piped_in_and_is_no_text_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "utf-8"))
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        messages(line_reader())
