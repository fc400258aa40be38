"""Faults of the machine below: no space left on its disk, another time on its clock."""

from __future__ import annotations

import asyncio

from apps.chaos.equipment import DAY_S
from apps.chaos.scene import Scene

JUMPS_S = (-DAY_S, DAY_S, -3650 * DAY_S, 3650 * DAY_S, None)  # None: back to 1970
JUMPED_S = 5.0  # ten heartbeats


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
