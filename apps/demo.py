"""`potluck demo`: three devices on this machine, two of them lost in mid-sentence, one text.

Each is a daemon of its own with a memory limit: three have room for the four long conversations
that are asked for, two for two of them, one alone for none.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from apps.local_mesh import Device, Event
from apps.measure import Generation, Recovery, generate, generate_and, recovery
from apps.show import escape, layers_text, waiting
from mesh.errors import PotluckError
from runtime.stored.model_files import DEFAULT_MODEL

NAMES = ("attic", "kitchen", "study")
PROMPT = "The old house by the sea had stood empty for years, until one evening"
MEMORY = "620MB"  # the model takes 0.27 GB, and each conversation of 32,768 tokens 0.24 GB
SESSIONS = 4
CONTEXT = 32768
MEET_TIMEOUT_S = 30.0
REJOIN_TIMEOUT_S = 120.0
OPTIONS = (
    *("--memory", MEMORY, "--sessions", str(SESSIONS), "--context", str(CONTEXT)),
    *("--port", "0", "--api-port", "0"),
)


@dataclass(frozen=True, slots=True)
class Lost:
    """One device lost in mid-sentence, and how the rest took it."""

    what: str
    name: str
    devices_left: int
    recovery: Recovery
    tokens_equal: bool


async def run_demo(out: Console, tokens: int) -> dict[str, Any]:
    """Runs the whole story; returns what `--json` prints. Raises PotluckError when it breaks."""
    with tempfile.TemporaryDirectory(prefix="potluck-demo-") as folder:
        async with AsyncExitStack() as stack:
            demo = Demo(out, Path(folder), tokens)
            stack.push_async_callback(demo.stop)
            return await demo.run()


class Demo:
    """Three devices and what happens to them."""

    def __init__(self, out: Console, folder: Path, tokens: int) -> None:
        self._out = out
        self._tokens = tokens
        self._devices = [Device(name, folder / name, OPTIONS) for name in NAMES]

    async def run(self) -> dict[str, Any]:
        out = self._out
        with waiting(out, "starting three devices", quiet=False):
            await self._start()
        first_leader = await self._leader()
        out.print(f"three devices have met; {first_leader.name} leads")

        owner, stage = [device for device in self._devices if device is not first_leader]
        with waiting(out, "measuring, planning, loading", quiet=False):
            undisturbed = await generate(owner, DEFAULT_MODEL, PROMPT, self._tokens)
        (plan,) = (await self._status(owner))["plans"]
        if len(plan["stages"]) != len(NAMES):
            raise PotluckError(f"the plan does not use all three devices: {plan['reason']}")
        self._print_plan(plan)
        out.print(f"[dim]{escape(PROMPT)}[/]{escape(undisturbed.text)}")

        lost_stage = await self._lose("a stage", stage, owner, undisturbed)
        with waiting(out, f"{stage.name} comes back", quiet=False):
            await self._take_back(stage, owner)
        out.print(f"\n{stage.name} is back and has a share of the plan again")
        lost_leader = await self._lose("the leader", first_leader, owner, undisturbed)
        new_leader = await self._leader()

        result = self._result([lost_stage, lost_leader], plan, undisturbed)
        self._print_table(result, new_leader)
        return result

    async def stop(self) -> None:
        await asyncio.gather(*(device.stop() for device in self._devices))

    async def _start(self) -> None:
        """The first device makes the mesh; the others join by its code, as a person would."""
        first, *others = self._devices
        await first.start()
        async with first.client() as client:
            code = (await client.post("/potluck/invite", {"long": True}))["code"]
        await asyncio.gather(*(device.join(code) for device in others))
        await asyncio.gather(*(device.start() for device in others))
        for device in self._devices:
            for other in self._devices:
                if other is not device:
                    await device.wait_event(_joined(other), timeout_s=MEET_TIMEOUT_S)

    async def _lose(self, what: str, lost: Device, owner: Device, undisturbed: Generation) -> Lost:
        """Kills a device after a third of the sentence; the stream goes on by itself."""
        killed_s, shown = 0.0, 0
        led = (await self._status(owner))["mesh"]["leader"]

        async def kill() -> None:
            nonlocal killed_s
            killed_s = await lost.kill()
            self._out.print(f"[bold red] << {lost.name}, {what}, killed >> [/]", end="")

        def show(generation: Generation) -> None:
            nonlocal shown
            self._out.print(escape(generation.text[shown:]), end="")
            shown = len(generation.text)

        self._out.print(f"\n[dim]{escape(PROMPT)}[/]", end="")
        generation = await generate_and(
            owner, DEFAULT_MODEL, PROMPT, self._tokens, self._tokens // 3, kill, show
        )
        survivors = [device for device in self._devices if device.running]
        after = recovery({lost.device_id: killed_s}, survivors, owner, led)
        equal = generation.token_ids == undisturbed.token_ids
        self._out.print(
            f"\n[bold green]it went on after {after.resume_ms or 0:.0f} ms on {len(survivors)} "
            f"devices, tokens equal: {'yes' if equal else 'NO'}[/]"
        )
        return Lost(what, lost.name, len(survivors), after, equal)

    async def _take_back(self, device: Device, owner: Device) -> None:
        """Starts a device again and waits until a plan with all three is in force."""
        seen = len(owner.events)
        await device.start()
        await owner.wait_event(
            lambda event: event["event"] == "plan" and device.device_id in event["devices"],
            after=seen,
            timeout_s=REJOIN_TIMEOUT_S,
        )

    async def _leader(self) -> Device:
        """Who leads, once every running device says the same."""
        running = [device for device in self._devices if device.running]
        async with asyncio.timeout(MEET_TIMEOUT_S):
            while True:
                leaders = {(await self._status(device))["mesh"]["leader"] for device in running}
                found = [device for device in running if {device.device_id} == leaders]
                if found:
                    return found[0]
                await asyncio.sleep(0.1)

    async def _status(self, device: Device) -> dict[str, Any]:
        async with device.client() as client:
            return await client.get("/potluck/status")

    def _result(
        self, lost: list[Lost], plan: dict[str, Any], undisturbed: Generation
    ) -> dict[str, Any]:
        return {
            "devices": len(self._devices),
            "leader_changes": sum(one.recovery.elect_ms is not None for one in lost),
            "tokens": len(undisturbed.token_ids),
            "tokens_equal": all(one.tokens_equal for one in lost),
            "resume_ms": [one.recovery.resume_ms for one in lost],
            "tokens_per_s": undisturbed.tokens_per_s,
            "faults": [asdict(one) for one in lost],
            "plan": plan,
            "text": undisturbed.text,
        }

    def _print_plan(self, plan: dict[str, Any]) -> None:
        """Who holds what, and why."""
        names = {device.device_id: device.name for device in self._devices}
        table = _table("device", "layers", f"memory (of {MEMORY})")
        for stage in plan["stages"]:
            used = plan["predicted"]["memory_bytes"][stage["device"]]
            layers = layers_text(stage["layers"])
            table.add_row(names[stage["device"]], layers, f"{used / 1e6:.0f} MB")
        self._out.print(table)
        self._out.print(f"{escape(plan['reason'])}\n")

    def _print_table(self, result: dict[str, Any], new_leader: Device) -> None:
        table = _table("lost", "detect", "elect", "plan", "resume", "tokens equal")
        for one in result["faults"]:
            times = one["recovery"]
            table.add_row(
                f"{one['name']}, {one['what']}",
                *(_ms(times[key]) for key in ("detect_ms", "elect_ms", "plan_ms", "resume_ms")),
                "yes" if one["tokens_equal"] else "NO",
            )
        self._out.print()
        self._out.print(table)
        self._out.print(
            f"{result['tokens']} tokens at {result['tokens_per_s']:.1f} tokens/s; "
            f"{new_leader.name} leads now"
        )


def _table(first: str, *others: str) -> Table:
    table = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    return table


def _joined(device: Device) -> Callable[[Event], bool]:
    return lambda event: event["event"] == "PeerJoined" and event["peer"] == device.device_id


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
