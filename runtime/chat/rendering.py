"""Has a chat template rendered by a process of its own, and tells in words what went wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadModelFile, BadPrompt

CPU_S: Final = 5  # a conversation of a million letters takes a tenth of it on a Pi
RENDER_TIMEOUT_S: Final = 30.0  # beside a busy worker thread, five seconds of computing take longer
RENDERER: Final = Path(__file__).with_name("renderer.py")
# What a Python may need to start, and the time zone; nothing else of ours is a template's business.
ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "LANG")
_ANOTHER: Final = "Take the model from another source, or name a built-in template"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What came of one case: a text, or a fault and its words."""

    text: str | None = None
    fault: str = ""
    words: str = ""

    def checked(self, origin: str) -> str:
        """The text. Raises BadPrompt where the messages are at fault, else BadModelFile."""
        if self.text is not None:
            return self.text
        whose = f"the chat template of {origin}"
        match self.fault:
            case "raised":
                raise BadPrompt(f"{whose} refuses: {self.words}")
            case "failed":
                raise BadPrompt(f"{whose} cannot take these messages: {self.words}")
            case "syntax":
                raise BadModelFile(f"{whose} is broken: {self.words}. {_ANOTHER}")
            case _:
                raise BadModelFile(f"{whose} does what none needs: {self.words}. {_ANOTHER}")


def render(
    source: str, cases: Sequence[dict[str, Any]], origin: str, cpu_s: int = CPU_S
) -> list[Rendered]:
    """`source` with each of the cases as its variables: a process is started, 0.1 s on a desktop.

    Raises BadModelFile when it takes more than `cpu_s` of computing, or too much memory.
    """
    asked = json.dumps({"template": source, "cases": cases, "cpu_s": cpu_s}).encode()
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    try:
        done = subprocess.run(  # noqa: S603 - our own script, by the interpreter that runs us
            [sys.executable, "-I", str(RENDERER)],
            input=asked,
            capture_output=True,
            check=False,
            timeout=RENDER_TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise _ended(origin, f"after {RENDER_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise _ended(origin, _cause(done.returncode, done.stderr))
    try:
        answers = json.loads(done.stdout.decode("utf-8", "surrogatepass"))
        return [Rendered(**answer) for answer in answers]
    except (ValueError, TypeError, RecursionError):  # not what our script writes
        raise _ended(origin, "it meddled with the renderer") from None


def _cause(status: int, said: bytes) -> str:
    if status < 0:
        return f"by {signal.Signals(-status).name}"
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
    return last[0][:200] if last else f"with status {status}"


def _ended(origin: str, cause: str) -> BadModelFile:
    return BadModelFile(
        f"the chat template of {origin} takes more time or memory than any template needs; "
        f"it was ended ({cause}). {_ANOTHER}"
    )
