"""The processor of this machine, in its maker's words: devices with the same are of one kind."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
_NAMES: Final = ("model name", "Model")  # on PCs; on a Pi, the board
MOST_CHARS: Final = 100


@cache
def processor() -> str:
    """Its cores and its name; empty where the system does not tell, which is anywhere but Linux."""
    try:
        return named(CPUINFO.read_text(errors="replace"), os.cpu_count() or 1)
    except OSError:
        return ""


def named(cpuinfo: str, count: int) -> str:
    """As `processor` says it, by what the system tells."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    found = next((fields[name] for name in _NAMES if fields.get(name)), "")
    return f"{count} cores of {found}"[:MOST_CHARS] if found else ""
