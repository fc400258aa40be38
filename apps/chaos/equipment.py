"""What a home must have before some faults can happen to it."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.bench import lan

DISK_BYTES: Final = 64 << 20  # a state folder with the weights of a tiny model in it
DAY_S: Final = 86_400
FAKETIME: Final = "faketime/libfaketime.so.1"  # Debian's package, below the libraries' folder
LIBRARIES: Final = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib")


@dataclass(frozen=True, slots=True)
class Equipment:
    """Beyond processes on loopback."""

    network: bool = False  # namespaces, each device behind a cable of its own
    disks: bool = False  # each state folder on a small disk of its own
    clocks: bool = False  # each device with a wall clock of its own

    def __or__(self, other: Equipment) -> Equipment:
        return Equipment(
            self.network or other.network, self.disks or other.disks, self.clocks or other.clocks
        )

    def why_not(self) -> str | None:
        """Why this machine cannot have it; None when it can."""
        if self.network and (reason := lan.why_not()):
            return reason
        if self.disks and os.geteuid() != 0:
            return "small disks need root, to be mounted"
        if self.clocks and _faketime() is None:
            return "libfaketime is not installed (apt-get install libfaketime)"
        return None


class SmallDisk:
    """A file system of DISK_BYTES in memory, on a device's state folder."""

    def __init__(self, folder: Path) -> None:
        """Mounts it; raises OSError where that is not allowed."""
        self._folder = folder
        options = f"size={DISK_BYTES},mode=700"
        _run("mount", "-t", "tmpfs", "-o", options, "potluck-disk", str(folder))

    def fill(self) -> None:
        """To the last byte."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass  # which is what was wanted

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def remove(self) -> None:
        _run("umount", "--lazy", str(self._folder))

    @property
    def _ballast(self) -> Path:
        return self._folder / "ballast"


class WallClock:
    """The wall clock of one device's processes; their monotonic clock is the machine's own."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)

    def jump_to_1970(self) -> None:
        """As a board without a battery boots: one day after the beginning of time."""
        self.jump(DAY_S - int(time.time()))

    def jump(self, offset_s: int) -> None:
        """So far from the machine's own, within about a second from now."""
        # Renamed into place: half a number read would be a jump that nobody asked for.
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}\n")
        fresh.replace(self._file)

    @property
    def launcher(self) -> tuple[str, ...]:
        """Put before a command, it lives by this clock."""
        return (
            *("env", f"LD_PRELOAD={_faketime()}", f"FAKETIME_TIMESTAMP_FILE={self._file}"),
            *("FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"),
            *("NO_FAKE_STAT=1", "FAKETIME_CACHE_DURATION=1"),
        )


def _faketime() -> Path | None:
    places = (Path(folder) / FAKETIME for folder in LIBRARIES)
    return next((place for place in places if place.exists()), None)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own words
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
