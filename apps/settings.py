"""What a person may set when a device takes part. Each field says its unit and its trade."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path

from mesh.errors import ConfigError
from mesh.ids import Address
from planner.plan import Wire
from runtime.compute.precision import Precision

DEFAULT_PORT = 8478  # where devices meet
DEFAULT_API_PORT = 8477  # where this machine's own programs ask
MEMORY_SHARE = 0.7  # of what is free now: a home device has other work to do
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class Settings:
    """One device's settings, from the command line."""

    home: Path  # the state folder: key, mesh secret, epochs, profiles
    name: str = field(default_factory=platform.node)
    model: str | None = None  # planned as soon as the mesh stands, instead of at the first request
    memory_bytes: int | None = None  # for weights and caches; None: MEMORY_SHARE of what is free
    sessions: int = 4  # conversations at once; each costs cache memory on every stage
    context: int = 8192  # tokens a conversation; the model's own maximum caps it
    interfaces: tuple[str, ...] = ()  # names; none means every physical one
    peers: tuple[Address, ...] = ()  # where to look besides mDNS
    port: int = DEFAULT_PORT  # 0 takes any free one
    api_port: int = DEFAULT_API_PORT  # on loopback only; 0 takes any free one
    precision: Precision = Precision.AUTO  # of the weights of models that are asked for here
    wire: Wire = Wire.FP32  # the narrowest type that their numbers may travel as
    device: str = "auto"  # torch's name of what computes: cpu, cuda, cuda:1, mps; auto: the best
    threads: int = field(default_factory=lambda: default_threads())


def parse_size(text: str) -> int:
    """`2GB`, `800MB`, `1.5 GiB` or plain bytes, as bytes. Raises ConfigError."""
    match = _SIZE.match(text)
    if match is None:
        raise ConfigError(f"a size is a number and a unit, such as 2GB or 800MB; got {text!r}")
    number, power, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[power.lower()])


def default_threads() -> int:
    """OMP_NUM_THREADS if set, else one thread per core this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_memory_bytes(own_free_bytes: int | None = None) -> int:
    """MEMORY_SHARE of the memory that is free now (of all memory where that is not told), or of
    what the torch device has free in a memory of its own.
    """
    if own_free_bytes is not None:
        return int(own_free_bytes * MEMORY_SHARE)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(int(line.split()[1]) * 1024 * MEMORY_SHARE)
    except OSError:
        pass  # not Linux: the total is all that is portable
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)
