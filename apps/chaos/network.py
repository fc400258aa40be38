"""Faults of the network: cables out, halves, links that work one way, lose packets, or are slow."""

from __future__ import annotations

import asyncio

from apps.bench.lan import Lan
from apps.chaos.scene import Scene

APART_S = 10.0  # long enough that both sides have settled before it heals
ROUGH_S = 8.0
LOST_PERCENT = range(2, 11)  # what bad Wi-Fi loses; counted on the way in and on the way out
SLOW_MBIT = (1, 2, 5)


async def unplug(scene: Scene) -> None:
    scene.lose(scene.victim)
    scene.blind.add(scene.victim.device_id)
    _lan(scene).unplug(scene.index(scene.victim))


async def replug(scene: Scene) -> None:
    _lan(scene).replug(scene.index(scene.victim))
    scene.over()


async def partition(scene: Scene) -> None:
    """The smaller half loses the other; the conversation's owner is among the more."""
    away = [scene.victim, scene.second][: (len(scene.home.devices) - 1) // 2]
    before = await scene.home.leader(scene.owner)
    scene.lose(*away)
    scene.blind |= {one.device_id for one in away}
    _lan(scene).partition([scene.index(one) for one in away])
    await asyncio.sleep(APART_S)
    _heal(scene)
    if before in {one.device_id for one in scene.survivors}:
        scene.notes["leader_before"] = before


async def mute(scene: Scene) -> None:
    """The victim hears all the others, and none of them hears it."""
    scene.lose(scene.victim)
    scene.blind.add(scene.victim.device_id)
    _lan(scene).mute(scene.index(scene.victim))
    await asyncio.sleep(APART_S)
    _heal(scene)


async def lose_packets(scene: Scene) -> None:
    percent = LOST_PERCENT[int(scene.case.chance * len(LOST_PERCENT))]
    scene.notes["lost_percent"] = percent
    scene.begin()
    _lan(scene).lossy(scene.index(scene.victim), percent)
    await asyncio.sleep(ROUGH_S)
    _heal(scene)


async def slow_down(scene: Scene) -> None:
    mbit = SLOW_MBIT[int(scene.case.chance * len(SLOW_MBIT))]
    scene.notes["mbit"] = mbit
    scene.begin()
    index = scene.index(scene.victim)
    _lan(scene).shape(index, mbit, mbit)
    await asyncio.sleep(ROUGH_S)
    _lan(scene).unshape(index)
    scene.over()


def _heal(scene: Scene) -> None:
    _lan(scene).mend()
    scene.over()


def _lan(scene: Scene) -> Lan:
    assert scene.home.lan is not None, "the fault's equipment names a network"
    return scene.home.lan
