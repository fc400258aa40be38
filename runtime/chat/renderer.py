"""Renders a chat template, as a process of its own: `python -I renderer.py`, JSON in and out.

A template comes with a model file and is a program of a stranger's. Jinja's sandbox keeps it from
files and from Python's insides, but not from counting to 10**18 or from making a text of gigabytes,
and inside the daemon nothing could end that. Here the system does, whatever it tries. This file
imports nothing of ours, so that starting it takes little more than importing jinja2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY_BYTES = 512 * 1024 * 1024
MAX_OUTPUT_CHARS = 8 * 1024 * 1024  # twice what a request can hold
MAX_WORDS = 500  # of an error, in letters


class Raised(TemplateError):
    """The template itself says that it cannot take these messages."""


class TooLong(Exception):
    """The text is longer than anything a model could read."""


class PlainNamespace(Namespace):
    """Takes no name that begins with an underscore: those are Python's own."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set {name!r}")
        super().__setitem__(name, value)


class GenerationBlocks(Extension):
    """`{% generation %}` marks what a model is trained on; here it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The names, filters and whitespace rules that templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "namespace": PlainNamespace,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    return environment


def answer(asked: dict[str, Any]) -> list[dict[str, str]]:
    """For each of `cases`, the template's variables: {"text"}, or {"fault", "words"}."""
    try:
        template = make_environment().from_string(asked["template"])
    except TemplateSyntaxError as error:
        words = f"line {error.lineno}: {error.message}"
        return [_fault("syntax", words) for _ in asked["cases"]]
    except Exception as error:  # such as nesting too deep for Python's own compiler
        return [_fault("syntax", _said(error)) for _ in asked["cases"]]
    return [_render(template.generate, case) for case in asked["cases"]]


def _render(generate: Callable[..., Any], variables: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": "".join(_bounded(generate(**variables)))}
    except Raised as error:
        return _fault("raised", str(error))
    except (TooLong, RecursionError, MemoryError, OverflowError, SecurityError) as error:
        return _fault("hostile", _said(error))
    except Exception as error:  # anything that a stranger's program may do wrong
        return _fault("failed", _said(error))


def _bounded(pieces: Iterable[str]) -> Iterator[str]:
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_OUTPUT_CHARS:
            raise TooLong(f"it made a text of more than {MAX_OUTPUT_CHARS} letters")
        yield piece


def _fault(fault: str, words: str) -> dict[str, str]:
    return {"fault": fault, "words": words[:MAX_WORDS]}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(words: object) -> None:
    raise Raised(str(words))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _limit(cpu_s: int) -> None:
    """Bounds of this process that nothing inside it can lift."""
    import resource  # not on every system; without it the parent's deadline is the bound

    for kind, bound in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # a system that does not know this one
            resource.setrlimit(kind, (bound, bound))


def main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    with suppress(ImportError):
        _limit(asked["cpu_s"])
    answers = answer(asked)
    data = json.dumps(answers, ensure_ascii=False).encode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(data)


if __name__ == "__main__":
    main()
