"""What a daemon's process holds: memory, files, threads and tasks, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from apps.chaos.home import status_of
from apps.local_mesh import Device

MAX_DRIFT: Final = 0.05  # of the resident memory, from the first quarter to the last


@dataclass(frozen=True, slots=True)
class Vitals:
    """Of one process at one moment."""

    rss_kib: int
    files: int  # open descriptors, sockets among them
    threads: int
    tasks: int  # of its event loop

    @classmethod
    async def of(cls, device: Device) -> Vitals:
        proc = Path(f"/proc/{device.pid}")
        fields = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        return cls(
            rss_kib=int(fields["VmRSS"].split()[0]),
            files=len(list((proc / "fd").iterdir())),
            threads=int(fields["Threads"]),
            tasks=(await status_of(device))["tasks"],
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def drift(samples: Sequence[Vitals]) -> float:
    """Growth of the resident memory: the last quarter's median over the first one's, less 1."""
    first, last = _quarters(samples)
    return median(one.rss_kib for one in last) / median(one.rss_kib for one in first) - 1


def leaks(samples: Sequence[Vitals]) -> list[str]:
    """What was never again as few as it once was at most; in words."""
    first, last = _quarters(samples)
    found = []
    for what in ("files", "threads", "tasks"):
        most = max(getattr(one, what) for one in first)
        least = min(getattr(one, what) for one in last)
        if least > most:
            found.append(f"{what}: at most {most} in the beginning, at least {least} in the end")
    return found


def _quarters(samples: Sequence[Vitals]) -> tuple[Sequence[Vitals], Sequence[Vitals]]:
    count = max(1, len(samples) // 4)
    return samples[:count], samples[-count:]
