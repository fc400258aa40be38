"""Faults of the processes: killed, stopped, sent away, starved of the processor."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apps.chaos.home import status_of
from apps.chaos.scene import Scene
from apps.local_mesh import Device

PAUSE_S = 1.9  # below the two seconds that we promise to forgive
STOP_S = 6.0  # far above every time-out
BUSY_PER_CORE = 16
BUSY_S = 30.0
PLAN_S = 0.15  # within it most plans are drawn and installed, so somewhere in it is the middle
SEEN_S = 15.0  # the longest wait for somebody to see something


async def kill(scene: Scene) -> None:
    scene.lose(scene.victim, at_s=await scene.victim.kill())


async def kill_two(scene: Scene) -> None:
    scene.begin()
    for device in (scene.victim, scene.second):
        scene.lose(device, at_s=await device.kill())


async def kill_another_meanwhile(scene: Scene) -> None:
    """The second is killed as soon as anybody sees the first one's death."""
    scene.lose(scene.victim, at_s=await scene.victim.kill())
    others = [one for one in scene.survivors if one is not scene.second]
    await _first_seen(scene, others, "PeerDied")
    await asyncio.sleep(scene.case.chance * PLAN_S)
    scene.lose(scene.second, at_s=await scene.second.kill())


async def cast_the_leader(scene: Scene) -> None:
    """The first victim has a share of the plan, so that a new one is wanted; the second leads."""
    home = scene.home
    leader = home.named(await home.leader(scene.owner))
    assert leader is not None, "a settled home has a leader"
    (plan,) = (await status_of(leader))["plans"]
    holders = {share["device"] for share in plan["stages"]}
    scene.second = leader
    scene.victim = next(
        one for one in home.devices if one.device_id in holders and one is not leader
    )
    others = [one for one in home.devices if one not in (scene.victim, leader)]
    scene.owner = others[scene.case.owner % len(others)]


async def kill_the_planning_leader(scene: Scene) -> None:
    """The leader is killed between its decision to plan and the plan's being in force."""
    scene.lose(scene.victim, at_s=await scene.victim.kill())
    await _first_seen(scene, [scene.second], "planning")
    await asyncio.sleep(scene.case.chance * PLAN_S)
    scene.notes["installed_first"] = any(
        event["event"] == "installed" for event in scene.events(scene.second)
    )
    scene.lose(scene.second, at_s=await scene.second.kill())


async def restart(scene: Scene) -> None:
    """Whoever does not run runs again."""
    await asyncio.gather(*(one.start() for one in scene.home.devices if not one.running))


async def pause(scene: Scene) -> None:
    await _stopped_for(scene, PAUSE_S)


async def stop(scene: Scene) -> None:
    scene.lose(scene.victim)
    await _stopped_for(scene, STOP_S)


async def leave(scene: Scene) -> None:
    """As on Ctrl-C: it hands over, then says goodbye; from then on it is gone."""
    scene.begin()
    await scene.victim.stop()
    said = [one for one in scene.victim.events if one["event"] == "leaving"]
    gone_s = said[-1]["at_s"]
    scene.lose(scene.victim, at_s=gone_s)
    scene.notes["hand_over_ms"] = (gone_s - scene.began_s) * 1e3


async def busy(scene: Scene) -> None:
    """BUSY_PER_CORE processes for each core want it, too."""
    scene.begin()
    scene.notes["length_s"] = BUSY_S
    async with _busy_processes(BUSY_PER_CORE * len(os.sched_getaffinity(0)), BUSY_S):
        await asyncio.sleep(BUSY_S)
    scene.over()


async def _stopped_for(scene: Scene, seconds: float) -> None:
    scene.begin()
    scene.victim.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        scene.victim.send_signal(signal.SIGCONT)
        scene.over()


@asynccontextmanager
async def _busy_processes(count: int, seconds: float) -> AsyncIterator[None]:
    """They end by themselves even if nobody ends them."""
    work = (
        f"import time\nend = time.monotonic() + {seconds + 5}\nwhile time.monotonic() < end: pass"
    )
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", work) for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process in processes))


async def _first_seen(scene: Scene, devices: list[Device], kind: str) -> None:
    """Returns when one of them has said it since the accident began; raises TimeoutError."""
    waiting = [
        asyncio.ensure_future(
            device.wait_event(
                lambda event: event["event"] == kind and event["at_s"] >= scene.began_s,
                after=scene.first_event[device.name],
                timeout_s=SEEN_S,
            )
        )
        for device in devices
    ]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in waiting:
            one.cancel()
