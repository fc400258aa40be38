"""What faults are made with does what it says: small disks, wall clocks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps.chaos.equipment import DAY_S, Equipment, SmallDisk, WallClock

CLOCKS = "import time; print(time.time(), time.monotonic())"


def test_a_full_disk_takes_nothing_until_it_is_freed(tmp_path: Path) -> None:
    if reason := Equipment(disks=True).why_not():
        pytest.skip(reason)
    disk = SmallDisk(tmp_path)
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "more").write_bytes(bytes(100))
        disk.free()
        (tmp_path / "more").write_bytes(bytes(100))
    finally:
        disk.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offset_s", [0, DAY_S, -3650 * DAY_S])
def test_only_the_wall_clock_jumps(tmp_path: Path, offset_s: int) -> None:
    if reason := Equipment(clocks=True).why_not():
        pytest.skip(reason)
    clock = WallClock(tmp_path / "clock")
    clock.jump(offset_s)
    command = (*clock.launcher, sys.executable, "-S", "-c", CLOCKS)
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    wall_s, monotonic_s = map(float, said.stdout.split())
    assert wall_s - time.time() == pytest.approx(offset_s, abs=30)
    assert monotonic_s - time.monotonic() == pytest.approx(0, abs=30)


def test_a_board_without_a_battery_boots_in_1970(tmp_path: Path) -> None:
    if reason := Equipment(clocks=True).why_not():
        pytest.skip(reason)
    clock = WallClock(tmp_path / "clock")
    clock.jump_to_1970()
    command = (*clock.launcher, sys.executable, "-S", "-c", CLOCKS)
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < float(said.stdout.split()[0]) < 2 * DAY_S
