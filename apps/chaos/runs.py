"""Runs of one fault after the other, in homes that are used for as many as possible."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from apps.chaos.case import TOKENS, Case
from apps.chaos.equipment import Equipment
from apps.chaos.fault import Fault, Seen
from apps.chaos.faults import FAULTS
from apps.chaos.home import Home, status_of
from apps.chaos.record import After, Heard, Record, record_of
from apps.chaos.scene import Scene
from apps.local_mesh import Device
from apps.measure import Generation, generate_and
from mesh.errors import PotluckError
from runtime.stored.model_files import DEFAULT_MODEL

MEMORY = "400MB"  # of each device: two can hold the default model, one cannot
RECOVER_TIMEOUT_S = 120.0
SEEN_TIMEOUT_S = 15.0  # far above every time-out of the detector and of an election
PLANS_TIMEOUT_S = 30.0  # for a home that is complete again to have plans that all know
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Asked:
    """Which runs."""

    faults: tuple[str, ...]  # in turns
    seeds: range  # of each
    devices: int | None = None  # as many in each home; None: the seed says
    model: str = DEFAULT_MODEL
    memory: str = MEMORY
    seconds: float | None = None  # no run begins later than this

    def cases(self) -> list[tuple[str, Case]]:
        """Each fault under each seed."""
        return [
            (name, Case.of(seed, self._counts(name))) for seed in self.seeds for name in self.faults
        ]

    def _counts(self, name: str) -> range:
        if self.devices is None:
            return FAULTS[name].devices
        return range(self.devices, self.devices + 1)

    @property
    def equipment(self) -> Equipment:
        """What a home needs for all of them."""
        found = Equipment()
        for name in self.faults:
            found |= FAULTS[name].equipment
        return found


async def run_all(asked: Asked, tell: Callable[[Record], None]) -> list[Record]:
    """All that was asked for, those with the same number of devices in one home; `tell` gets each
    as it is done.
    """
    until_s = time.monotonic() + asked.seconds if asked.seconds is not None else None
    records: list[Record] = []
    cases = asked.cases()
    for count in sorted({case.devices for _, case in cases}):
        waiting = [one for one in cases if one[1].devices == count]
        while waiting and (until_s is None or time.monotonic() < until_s):
            records += await _in_one_home(asked, count, waiting, until_s, tell)
    return records


async def _in_one_home(
    asked: Asked,
    count: int,
    waiting: list[tuple[str, Case]],
    until_s: float | None,
    tell: Callable[[Record], None],
) -> list[Record]:
    """Takes cases off the list until the home is not whole any more after one of them."""
    records = []
    async with Home.of(count, asked.memory, equipment=asked.equipment) as home:
        while waiting and (until_s is None or time.monotonic() < until_s):
            name, case = waiting.pop(0)
            record = await run_case(home, case, asked.model, name)
            tell(record)
            records.append(record)
            if record.heal_ms is None:
                break
    return records


async def run_case(home: Home, case: Case, model: str, name: str) -> Record:
    """One fault in mid-generation, and the home brought back to what it was."""
    fault = FAULTS[name]
    undisturbed = await home.undisturbed(model, case.prompt)
    scene = Scene.of(home, case)
    await fault.prepare(scene)
    led = await home.leader(scene.owner)
    refused = await _refused(home)
    heard = await _hear(scene, fault, model)
    if scene.lost and fault.seen is not Seen.NOTHING:
        await _all_see(scene, led)
    scene.over_s = scene.over_s or time.monotonic()
    after = await _made_good(scene, fault)
    meanwhile = [max(0, n - refused.get(name, 0)) for name, n in (await _refused(home)).items()]
    after = replace(after, refused=sum(meanwhile))
    return record_of(name, fault, scene, led, model, undisturbed, heard, after)


async def _hear(scene: Scene, fault: Fault, model: str) -> Heard:
    """The generation that the fault strikes, as its client hears it."""
    generation, error = Generation(), None
    case = scene.case

    def watch(now: Generation) -> None:
        nonlocal generation
        generation = now

    try:
        async with asyncio.timeout(RECOVER_TIMEOUT_S):
            await generate_and(
                *(scene.owner, model, case.prompt, TOKENS, case.at_token),
                *(lambda: fault.strike(scene), watch),
            )
    except (PotluckError, TimeoutError) as failure:
        error = str(failure) or f"no end within {RECOVER_TIMEOUT_S:g} s"
    return Heard(generation, error, time.monotonic())


async def _all_see(scene: Scene, led: str | None) -> None:
    """Until every survivor has seen every loss and has a leader; or as long as that may take."""

    def sees(device: Device, device_id: str) -> bool:
        return any(
            event["event"] in ("PeerDied", "PeerLeft") and event["peer"] == device_id
            for event in scene.events(device)
        )

    def led_again(device: Device) -> bool:
        return any(
            event["event"] == "LeaderElected" and event["leader"] not in scene.lost
            for event in scene.events(device)
        )

    deadline_s = time.monotonic() + SEEN_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if all(sees(one, lost) for one in scene.survivors for lost in scene.lost) and (
            led not in scene.lost or all(led_again(one) for one in scene.survivors)
        ):
            return
        await asyncio.sleep(POLL_S)


async def _made_good(scene: Scene, fault: Fault) -> After:
    """Undoes the fault and waits for the home to be whole."""
    home = scene.home
    try:
        await fault.undo(scene)
        await home.settled()
    except (PotluckError, TimeoutError) as failure:
        scene.notes["not_healed"] = str(failure)
        return After(None, None, one_plan=False, refused=0)
    heal_ms = (time.monotonic() - scene.over_s) * 1e3
    one_plan = await _one_plan(home)
    scene.notes["same_plans_ms"] = round((time.monotonic() - scene.over_s) * 1e3)
    return After(heal_ms, await home.leader(scene.owner), one_plan, refused=0)


async def _one_plan(home: Home) -> bool:
    """Whether all devices come to know the same plans."""
    deadline_s = time.monotonic() + PLANS_TIMEOUT_S
    while time.monotonic() < deadline_s:
        known = [await status_of(device) for device in home.devices]
        plans = [frozenset(plan["plan_id"] for plan in one["plans"]) for one in known]
        if len(set(plans)) == 1:
            return True
        await asyncio.sleep(POLL_S)
    return False


async def _refused(home: Home) -> dict[str, int]:
    """What each running device has refused so far; a restart begins anew."""
    told = {one.name: await status_of(one) for one in home.devices if one.running}
    return {name: sum(one["refused"].values()) for name, one in told.items()}
