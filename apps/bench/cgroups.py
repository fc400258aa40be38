"""Processor time and memory of an emulated device, as the kernel's control groups bound them.

Both layouts are known: version 1, a tree for each controller, and version 2, one tree.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PERIOD_US: Final = 10_000  # at the usual 100 ms a slow device looks like one that stalls
GONE_S: Final = 5.0  # for the processes of a group to be gone, once they were killed
_V2_CONTROLLERS: Final = ("cpu", "memory")


def why_not(root: Path = ROOT) -> str | None:
    """Why no limit can be set here; None when it can."""
    if _is_v1(root):
        missing = [
            name for name in ("cpu", "memory") if not (root / name / "cgroup.procs").exists()
        ]
        return f"the control groups lack {', '.join(missing)}" if missing else None
    try:
        there = (root / "cgroup.controllers").read_text().split()
    except OSError:
        return f"no control groups are mounted at {root}"
    missing = [name for name in _V2_CONTROLLERS if name not in there]
    return f"the control groups lack {', '.join(missing)}" if missing else None


@dataclass(frozen=True, slots=True)
class Group:
    """One device's limits. Made by `make`; `remove` when its processes are gone."""

    cpu: Path
    memory: Path  # the same folder in version 2
    is_v1: bool

    @classmethod
    def make(cls, name: str, root: Path = ROOT) -> Group:
        """Raises OSError where the system refuses."""
        is_v1 = _is_v1(root)
        if is_v1:
            group = cls(root / "cpu" / name, root / "memory" / name, is_v1)
        else:
            wanted = " ".join(f"+{controller}" for controller in _V2_CONTROLLERS)
            (root / "cgroup.subtree_control").write_text(wanted)
            group = cls(root / name, root / name, is_v1)
        for folder in group.folders:
            folder.mkdir()
        return group

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((self.cpu, self.memory)))

    def joining(self, command: tuple[str, ...]) -> tuple[str, ...]:
        """The command as one that joins this group first, and is in it from its first byte on."""
        joins = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in self.folders)
        return ("sh", "-c", f'{joins}exec "$@"', "sh", *command)

    def limit_cores(self, cores: float | None) -> None:
        """So much of one core's time in every 10 ms; None: as much as there is."""
        quota_us = None if cores is None else round(cores * PERIOD_US)
        if self.is_v1:
            (self.cpu / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.cpu / "cpu.cfs_quota_us").write_text(str(-1 if quota_us is None else quota_us))
        else:
            most = "max" if quota_us is None else str(quota_us)
            (self.cpu / "cpu.max").write_text(f"{most} {PERIOD_US}")

    def limit_memory(self, most_bytes: int) -> None:
        """Beyond it, the kernel kills."""
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        (self.memory / name).write_text(str(most_bytes))

    def remove(self) -> None:
        """Waits a little for the last process to be gone; what stays then is only an empty group
        that the system will not give up yet.
        """
        deadline_s = time.monotonic() + GONE_S
        for folder in self.folders:
            while folder.is_dir() and time.monotonic() < deadline_s:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.02)


def _is_v1(root: Path) -> bool:
    return (root / "cpu" / "cpu.cfs_quota_us").exists() or (root / "cpu" / "cgroup.procs").exists()
