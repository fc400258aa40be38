"""How fast Python is here: what a test may take is said of a core of a server."""

from __future__ import annotations

import time
from typing import Final

ADDITIONS: Final = 300_000
SERVER_S: Final = 0.06 * ADDITIONS / 1e6  # what is called a server here: not measured on one


def times_slower() -> float:
    """Than a server, and at least 1: by the processor time that a loop takes right now."""
    started_s, total = time.process_time(), 0
    for number in range(ADDITIONS):
        total += number
    return max(1.0, (time.process_time() - started_s) / SERVER_S)
