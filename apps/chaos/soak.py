"""The soak: one home for an hour, a random fault every 20 s, its history judged, nothing leaked."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from apps.chaos.case import Case
from apps.chaos.equipment import Equipment
from apps.chaos.faults import FAULTS
from apps.chaos.history import lines_of
from apps.chaos.home import Home
from apps.chaos.record import Record, machine
from apps.chaos.runs import MEMORY, run_case
from apps.chaos.vitals import MAX_DRIFT, Vitals, drift, leaks
from apps.sim.check import violations
from runtime.stored.model_files import DEFAULT_MODEL

DEVICES: Final = 6
STAYERS: Final = 2  # devices that no fault restarts: what they hold in the end is compared
EVERY_S: Final = 20.0
# What takes the whole machine is measured by itself; a leader that is killed may be a stayer.
LEFT_OUT: Final = ("busy", "mid-install")


@dataclass(frozen=True, slots=True)
class Soak:
    """What an hour was, as one line."""

    seed: int
    date: str
    machine: str
    seconds: float
    faults: int
    tokens_equal: int
    suspicions: int
    deaths: int
    rss_drift: float  # the largest of the devices that stayed
    vitals: dict[str, Any]  # of those, in the beginning and in the end
    wrong: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        names = self.__slots__
        return {"fault": "soak", **{name: getattr(self, name) for name in names}}


async def soak(
    seconds: float,
    seed: int,
    tell: Callable[[Record], None],
    *,
    model: str = DEFAULT_MODEL,
    memory: str = MEMORY,
) -> Soak:
    """Faults until the time is over, then the verdict."""
    rng = random.Random(seed)  # noqa: S311 - chooses accidents; no secret
    names = [name for name, fault in FAULTS.items() if _possible(name)]
    equipment = Equipment()
    for name in names:
        equipment |= FAULTS[name].equipment
    records: list[Record] = []
    async with Home.of(DEVICES, memory, equipment=equipment) as home:
        await home.undisturbed(model, Case.of(seed).prompt)
        began_s = time.monotonic()
        samples = {device.name: [await Vitals.of(device)] for device in home.devices[:STAYERS]}
        bag: list[str] = []
        while time.monotonic() < began_s + seconds:
            next_s = time.monotonic() + EVERY_S
            bag = bag or rng.sample(names, len(names))  # each as often as the others
            record = await run_case(home, _case(rng.getrandbits(32)), model, bag.pop())
            records.append(record)
            tell(record)
            if record.heal_ms is None:
                break  # the home is not whole any more
            for device in home.devices[:STAYERS]:
                samples[device.name].append(await Vitals.of(device))
            await asyncio.sleep(max(0.0, min(next_s, began_s + seconds) - time.monotonic()))
        took_s = time.monotonic() - began_s
        breaches = violations(lines_of(home.devices))
    return _verdict(seed, took_s, records, samples, breaches)


def _possible(name: str) -> bool:
    return name not in LEFT_OUT and FAULTS[name].equipment.why_not() is None


def _case(seed: int) -> Case:
    """The stayers own the conversations; what happens, happens to the others."""
    rng = random.Random(seed)  # noqa: S311 - chooses accidents; no secret
    victim, second = rng.sample(range(STAYERS, DEVICES), 2)
    case = Case.of(seed, range(DEVICES, DEVICES + 1))
    return replace(case, owner=rng.randrange(STAYERS), victim=victim, second=second)


def _verdict(
    seed: int,
    seconds: float,
    records: list[Record],
    samples: dict[str, list[Vitals]],
    breaches: list[str],
) -> Soak:
    largest = max(drift(one) for one in samples.values())
    wrong = [f"{one.fault} (seed {one.seed}): {text}" for one in records for text in one.wrong]
    wrong += breaches
    wrong += [f"{name} leaks {text}" for name, one in samples.items() for text in leaks(one)]
    if largest > MAX_DRIFT:
        wrong.append(f"resident memory grew by {largest:.1%}")
    return Soak(
        seed=seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        seconds=seconds,
        faults=len(records),
        tokens_equal=sum(one.tokens_equal for one in records),
        suspicions=sum(one.suspicions for one in records),
        deaths=sum(one.deaths for one in records),
        rss_drift=largest,
        vitals={
            name: [one[0].as_dict(), one[-1].as_dict()] for name, one in sorted(samples.items())
        },
        wrong=tuple(wrong),
    )
