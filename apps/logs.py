"""The daemon's log on standard error: what a peer can cause, it cannot cause without end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from mesh.limits import MAX_LOG_LINES_PER_S

_SECOND_S = 1.0


@dataclass(slots=True)
class _Cause:
    """One statement that logs, in its present second."""

    began_s: float
    lines: int = 0
    left_out: int = 0


class LogLimit(logging.Filter):
    """At most MAX_LOG_LINES_PER_S from each statement; the next line after that says how many were
    left out. There are no more causes than statements, so this does not grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._causes: dict[tuple[str, int], _Cause] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now_s = self._clock()
        cause = self._causes.setdefault((record.pathname, record.lineno), _Cause(now_s))
        if now_s - cause.began_s >= _SECOND_S:
            cause.began_s, cause.lines = now_s, 0
        if cause.lines >= MAX_LOG_LINES_PER_S:
            cause.left_out += 1
            return False
        cause.lines += 1
        if cause.left_out:
            record.msg = f"{record.getMessage()} (and {cause.left_out} such lines were left out)"
            record.args, cause.left_out = (), 0
        return True


def log_to_stderr() -> None:
    """Warnings and worse, as Python does by itself, and limited."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(LogLimit())
    logging.getLogger().addHandler(handler)
