"""Faults of the machine below: no space left on its disk, another time on its clock, a flood."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from apps.chaos.equipment import DAY_S
from apps.chaos.home import address_of
from apps.chaos.scene import Scene
from apps.local_mesh import Device

JUMPS_S = (-DAY_S, DAY_S, -3650 * DAY_S, 3650 * DAY_S, None)  # None: back to 1970
JUMPED_S = 5.0  # ten heartbeats
FLOOD_SOCKETS = 2000
FLOOD_HOSTS = 200  # addresses they come from
FLOOD_S = 8.0  # above the time in which every silent socket must be closed
POLL_S = 0.1


async def fill_disk(scene: Scene) -> None:
    """The victim can write nothing any more; then another device is lost, and all must plan."""
    scene.home.disks[scene.index(scene.victim)].fill()
    scene.lose(scene.second, at_s=await scene.second.kill())


async def free_disk(scene: Scene) -> None:
    scene.notes["still_running"] = scene.victim.running
    scene.home.disks[scene.index(scene.victim)].free()
    starting = [one for one in scene.home.devices if not one.running]
    await asyncio.gather(*(one.start() for one in starting))


async def jump(scene: Scene) -> None:
    """The victim's wall clock jumps in mid-run, and is set right again by a second jump."""
    clock = scene.home.clocks[scene.index(scene.victim)]
    offset_s = JUMPS_S[int(scene.case.chance * len(JUMPS_S))]
    scene.begin()
    if offset_s is None:
        clock.jump_to_1970()
    else:
        clock.jump(offset_s)
    scene.notes["jump_days"] = None if offset_s is None else offset_s // DAY_S
    await asyncio.sleep(JUMPED_S)
    clock.jump(0)
    await asyncio.sleep(JUMPED_S / 2)
    scene.over()


async def flood(scene: Scene) -> None:
    """FLOOD_SOCKETS connections from many addresses to the victim, none of which says a word."""
    before_kib = rss_kib(scene.victim)
    address, opened = address_of(scene.victim), 0
    _allow_files(FLOOD_SOCKETS + 256)
    scene.begin()
    with ExitStack() as stack:
        sockets = []
        for number in range(FLOOD_SOCKETS):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.bind((f"127.0.1.{number % FLOOD_HOSTS + 1}", 0))
            try:
                one.connect((address.host, address.port))
            except BlockingIOError:
                opened += 1
            sockets.append(one)
            if number % 50 == 0:
                await asyncio.sleep(0)
        scene.notes["sockets"] = opened
        opened_s = time.monotonic()
        most_kib, closed_s = before_kib, None
        while time.monotonic() < opened_s + FLOOD_S:
            most_kib = max(most_kib, rss_kib(scene.victim))
            sockets = [one for one in sockets if _is_open(one)]
            if not sockets and closed_s is None:
                closed_s = time.monotonic()
            await asyncio.sleep(POLL_S)
    scene.over()
    scene.notes["rss_growth_mib"] = round((most_kib - before_kib) / 1024, 1)
    scene.notes["silent_closed_ms"] = closed_s and (closed_s - opened_s) * 1e3


def rss_kib(device: Device) -> int:
    """Resident memory of its process."""
    for line in Path(f"/proc/{device.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"{device.name} has ended")


def _is_open(one: socket.socket) -> bool:
    try:
        return one.recv(4096) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
