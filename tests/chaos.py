"""Seeded faults on real daemons in mid-generation; every run must give the undisturbed tokens.

    python -m tests.chaos --runs 50 --fault kill      processes on loopback, kill -9
    python -m tests.chaos --runs 50 --fault unplug    namespaces, link down (needs root)

A run is made of its seed alone: how many devices (3 to 5), which one is lost, which of the others
owns the session (an owner that is lost takes its client with it), after how many tokens. One JSON
line a run goes to --out; p50 and p95 of detection, election, planning and resume are printed at the
end. Exits 1 if any tokens differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.bench.lan import Lan, why_not
from apps.local_mesh import Device
from apps.measure import Generation, generate, generate_and, recovery
from mesh.config import StateFolder
from mesh.trust import MeshSecret
from runtime.stored.model_files import DEFAULT_MODEL

TOKENS = 48
MEET_TIMEOUT_S = 60.0
RECOVER_TIMEOUT_S = 120.0
PROMPTS = (
    "The old house by the sea had stood empty for years, until one evening",
    "Once upon a time there was a small robot who",
    "The three most important things about bread are",
    "def fibonacci(n):",
    "Dear neighbours, we are writing to you because",
)


@dataclass(frozen=True, slots=True)
class Case:
    """What a seed stands for."""

    seed: int
    devices: int
    owner: int
    victim: int
    at_token: int
    prompt: str

    @classmethod
    def of(cls, seed: int) -> Case:
        rng = random.Random(seed)
        devices = rng.randint(3, 5)
        owner, victim = rng.sample(range(devices), 2)
        return cls(
            seed,
            devices,
            owner,
            victim,
            rng.randint(1, TOKENS - 8),
            rng.choice(PROMPTS),
        )


class Home:
    """A mesh of `count` daemons that have met."""

    def __init__(self, devices: list[Device], lan: Lan | None) -> None:
        self.devices = devices
        self.lan = lan
        self._undisturbed: dict[str, Generation] = {}

    @classmethod
    @asynccontextmanager
    async def of(
        cls,
        count: int,
        memory: str,
        *,
        namespaces: bool = False,
        sessions: int = 4,
        context: int = 32768,
    ) -> AsyncIterator[Home]:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="potluck-")))
            lan = stack.enter_context(Lan(count)) if namespaces else None
            options = (
                *("--memory", memory, "--sessions", str(sessions), "--context", str(context)),
                *("--port", "0", "--api-port", "0"),
            )
            secret = MeshSecret.new()
            devices = []
            for index in range(count):
                home = folder / str(index)
                secret.save(StateFolder.open(home))
                devices.append(
                    Device(
                        f"device{index}",
                        home,
                        options,
                        "eth0" if lan else "lo",
                        lan.launcher(index) if lan else (),
                        lan.socket_factory(index) if lan else None,
                    )
                )
            stack.push_async_callback(_stop_all, devices)
            await asyncio.gather(*(device.start() for device in devices))
            mesh = cls(devices, lan)
            await mesh.settled()
            yield mesh

    async def settled(self) -> None:
        """Waits until every running device sees all of them alive under one leader."""
        running = [device for device in self.devices if device.running]
        ids = {device.device_id for device in running}
        async with asyncio.timeout(MEET_TIMEOUT_S):
            while True:
                views = [await _mesh_status(device) for device in running]
                alive = [{m["id"] for m in v["members"] if m["health"] == "alive"} for v in views]
                leaders = {view["leader"] for view in views}
                if all(seen == ids for seen in alive) and len(leaders) == 1 and leaders <= ids:
                    return
                await asyncio.sleep(0.1)

    async def undisturbed(self, model: str, prompt: str) -> Generation:
        if prompt not in self._undisturbed:
            self._undisturbed[prompt] = await generate(self.devices[0], model, prompt, TOKENS)
        return self._undisturbed[prompt]

    async def lose(self, index: int) -> float:
        """The moment it was lost."""
        if self.lan is None:
            return await self.devices[index].kill()
        lost_s = time.monotonic()
        self.lan.unplug(index)
        return lost_s

    async def bring_back(self, index: int) -> None:
        if self.lan is None:
            await self.devices[index].start()
        else:
            self.lan.replug(index)
        await self.settled()


async def run_case(home: Home, case: Case, model: str, fault: str) -> dict[str, Any]:
    """One fault in mid-generation; the line for the table."""
    owner, victim = home.devices[case.owner], home.devices[case.victim]
    undisturbed = await home.undisturbed(model, case.prompt)
    was_leader = (await _mesh_status(owner))["leader"] == victim.device_id
    lost_s = 0.0

    async def lose() -> None:
        nonlocal lost_s
        lost_s = await home.lose(case.victim)

    async with asyncio.timeout(RECOVER_TIMEOUT_S):
        generation = await generate_and(owner, model, case.prompt, TOKENS, case.at_token, lose)
    assert lost_s, f"the text of seed {case.seed} was over before anything could be lost"
    survivors = [device for device in home.devices if device is not victim]
    times = recovery(lost_s, victim, survivors, owner)
    return {
        "fault": fault,
        "seed": case.seed,
        "devices": case.devices,
        "leader_lost": was_leader,
        "at_token": case.at_token,
        **times.as_dict(),
        "tokens_equal": generation.token_ids == undisturbed.token_ids,
    }


async def run_all(seeds: range, model: str, memory: str, fault: str, out: Path | None) -> bool:
    """All seeds, those with the same number of devices in one home. True if all tokens equal."""
    cases = [Case.of(seed) for seed in seeds]
    records: list[dict[str, Any]] = []
    for count in sorted({case.devices for case in cases}):
        async with Home.of(count, memory, namespaces=fault == "unplug") as home:
            for case in (case for case in cases if case.devices == count):
                record = await run_case(home, case, model, fault)
                records.append(record)
                print(json.dumps(record), flush=True)
                if out is not None:
                    with out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                await home.bring_back(case.victim)
    print(summary(records))
    return all(record["tokens_equal"] for record in records)


def summary(records: list[dict[str, Any]]) -> str:
    """p50 / p95 / max of each time, and whether the tokens were equal."""
    equal = sum(record["tokens_equal"] for record in records)
    lines = [f"{len(records)} runs, tokens equal in {equal}"]
    for key in ("detect_ms", "elect_ms", "plan_ms", "resume_ms"):
        values = sorted(record[key] for record in records if record[key] is not None)
        if values:
            p50, p95 = (values[min(len(values) - 1, int(len(values) * q))] for q in (0.5, 0.95))
            lines.append(
                f"{key:>10}  p50 {p50:7.0f}  p95 {p95:7.0f}  max {values[-1]:7.0f}  n {len(values)}"
            )
    return "\n".join(lines)


async def _mesh_status(device: Device) -> dict[str, Any]:
    async with device.client() as client:
        body: dict[str, Any] = (await client.get("/potluck/status"))["mesh"]
        return body


async def _stop_all(devices: list[Device]) -> None:
    await asyncio.gather(*(device.stop() for device in devices))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fault", choices=("kill", "unplug"), default="kill")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--memory", default="620MB")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.fault == "unplug" and (reason := why_not()):
        sys.exit(f"cannot unplug anything: {reason}")
    seeds = range(asked.first_seed, asked.first_seed + asked.runs)
    equal = asyncio.run(run_all(seeds, asked.model, asked.memory, asked.fault, asked.out))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
