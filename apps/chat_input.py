"""What a person types in a chat: messages of one or more lines, read from a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from mesh.errors import ConfigError

FENCE = '"""'  # opens and closes a message of several lines
MORE = "\\"  # at the end of a line: the message goes on in the next one
PROMPT, PROMPT_MORE = ">>> ", "... "

ReadLine = Callable[[str], str]  # shows a prompt; raises EOFError, KeyboardInterrupt


def is_terminal() -> bool:
    """Whether a person sits at both ends; else no prompt is shown."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def line_reader() -> ReadLine:
    """Lines of standard input, edited and remembered where it is a terminal.

    A reader raises ConfigError for what is not text.
    """
    if not is_terminal():
        return _piped_line
    with suppress(ImportError):  # a Python without it still reads lines
        import readline  # noqa: F401 - `input` edits lines and remembers them from now on
    return _typed_line


def message(read: ReadLine) -> str:
    """The next one; may be empty. Raises EOFError at the end, and what `read` raises."""
    line = read(PROMPT)
    if line.lstrip().startswith(FENCE):
        return _fenced(read, line.lstrip().removeprefix(FENCE))
    lines = [line]
    while lines[-1].endswith(MORE):
        lines[-1] = lines[-1].removesuffix(MORE)
        try:
            lines.append(read(PROMPT_MORE))
        except EOFError:
            break  # what was typed counts; the end is seen next time
    return "\n".join(lines)


def _fenced(read: ReadLine, line: str) -> str:
    lines = []
    while FENCE not in line:
        lines.append(line)
        try:
            line = read(PROMPT_MORE)
        except EOFError:
            return "\n".join(lines)
    lines.append(line.partition(FENCE)[0])
    return "\n".join(lines).strip("\n")


def _typed_line(prompt: str) -> str:
    try:
        return _as_text(input(prompt))
    except UnicodeDecodeError as error:
        raise _no_text(error) from None


def _piped_line(prompt: str) -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise _no_text(error) from None
    if not line:
        raise EOFError
    return _as_text(line.removesuffix("\n"))


def _no_text(error: UnicodeDecodeError) -> ConfigError:
    return ConfigError(f"standard input is no UTF-8 text ({error.reason}); convert it, or type it")


def _as_text(line: str) -> str:
    """Bytes that are no UTF-8 come as halves of characters, which nothing can send."""
    return line.encode("utf-8", "replace").decode()
