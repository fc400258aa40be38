"""Faults of the machine below: no space left on its disk, another time on its clock, a flood."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from apps.chaos.equipment import DAY_S
from apps.chaos.home import address_of
from apps.chaos.scene import Scene
from apps.local_mesh import Device
from mesh.ids import Address

JUMPS_S = (-DAY_S, DAY_S, -3650 * DAY_S, 3650 * DAY_S, None)  # None: back to 1970
JUMPED_S = 5.0  # ten heartbeats
FLOOD_SOCKETS = 2000
FLOOD_HOSTS = 200  # addresses they come from
FLOOD_S = 12.0  # twice the time in which a silent socket must be closed, and more
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
    before_kib = most_kib = rss_kib(scene.victim)
    address = address_of(scene.victim)
    _allow_files(FLOOD_SOCKETS + 256)
    scene.begin()
    with ExitStack() as stack:
        sockets = []
        for number in range(FLOOD_SOCKETS):
            host = f"127.0.1.{number % FLOOD_HOSTS + 1}"
            sockets.append(SilentSocket(stack.enter_context(socket.socket()), host, address))
            if number % 50 == 0:
                await asyncio.sleep(0)
        ends_s = time.monotonic() + FLOOD_S
        while time.monotonic() < ends_s:
            most_kib = max(most_kib, rss_kib(scene.victim))
            for one in sockets:
                one.look()
            await asyncio.sleep(POLL_S)
        scene.over()
        lives = [one.lived_s for one in sockets if one.lived_s is not None]
        scene.notes["sockets"] = len(lives)
        scene.notes["silent_closed_ms"] = round(max(lives, default=0.0) * 1e3)
    scene.notes["rss_growth_mib"] = round((most_kib - before_kib) / 1024, 1)


class SilentSocket:
    """Connects, and then says nothing; how long it was let live."""

    def __init__(self, made: socket.socket, host: str, address: Address) -> None:
        self._socket = made
        self._came_s: float | None = None  # None: the other end has not taken the connection yet
        self._gone_s: float | None = None
        made.setblocking(False)
        made.bind((host, 0))
        with suppress(BlockingIOError):
            made.connect((address.host, address.port))

    def look(self) -> None:
        if self._gone_s is not None:
            return
        now_s = time.monotonic()
        try:
            if self._came_s is None:
                self._socket.getpeername()
                self._came_s = now_s
            if self._socket.recv(4096) == b"":
                self._gone_s = now_s
        except BlockingIOError:
            pass  # still open
        except OSError:
            self._gone_s = now_s if self._came_s is not None else None

    @property
    def lived_s(self) -> float | None:
        """Until it was closed, or until now; None for one that was never connected."""
        if self._came_s is None:
            return None
        return (self._gone_s or time.monotonic()) - self._came_s


def rss_kib(device: Device) -> int:
    """Resident memory of its process."""
    for line in Path(f"/proc/{device.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"{device.name} has ended")


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
