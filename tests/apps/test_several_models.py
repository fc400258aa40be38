"""Several models at once on a mesh of real daemons: two fit, a third makes one leave, and whatever
device is lost, all streams go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apps.chaos.home import Home
from apps.client import ApiError
from apps.local_mesh import Device
from apps.measure import Generation, generate
from apps.planning.profiles import SCRATCH_BYTES
from runtime.weights import Checkpoint
from tests.apps.conftest import CONTEXT, LAYERS, SESSIONS, needed_bytes
from tests.apps.test_cli import potluck
from tests.runtime.tiny_model import write_tiny_gemma

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("several_models")]

TOKENS = 100
PROMPT = "the cat"
# Of one model: a device holds three of its six layers with room for two conversations, or four
# with room for one. So four devices hold two models, and three devices two with less room.
PART_OF_MEMORY = 0.547


@dataclass(frozen=True, slots=True)
class Town:
    """Four devices, and models whose paths all of them can read."""

    home: Home
    models: list[str]
    huge: str

    @property
    def devices(self) -> list[Device]:
        return self.home.devices

    async def status(self, device: Device) -> dict[str, Any]:
        async with device.client() as client:
            return await client.get("/potluck/status")

    async def running(self) -> dict[str, set[str]]:
        """The devices of each model in force, by its name, as those that are up agree on it."""
        async with asyncio.timeout(60):
            while True:
                up = [device for device in self.devices if device.running]
                told = [_plans(await self.status(device)) for device in up]
                if all(one == told[0] for one in told):
                    return told[0]
                await asyncio.sleep(0.1)

    async def leader(self) -> Device:
        leader = (await self.status(self.devices[0]))["mesh"]["leader"]
        return next(device for device in self.devices if device.device_id == leader)


def _plans(status: dict[str, Any]) -> dict[str, set[str]]:
    return {
        plan["model"]: {stage["device"] for stage in plan["stages"]} for plan in status["plans"]
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    folder: Path = tmp_path_factory.mktemp("models")
    paths = [
        write_tiny_gemma(folder / f"{name}.gguf", layers=LAYERS, seed=seed, name=name)
        for seed, name in enumerate(("ada", "bob", "cid"))
    ]
    huge = write_tiny_gemma(folder / "huge.gguf", layers=LAYERS, hidden=256, ffn=1024, name="huge")
    room = needed_bytes(Checkpoint.open(paths[0])) - SCRATCH_BYTES
    memory = str(SCRATCH_BYTES + int(room * PART_OF_MEMORY))
    async with asyncio.timeout(90):
        manager = Home.of(4, memory, sessions=SESSIONS, context=CONTEXT)
        home = await manager.__aenter__()
    try:
        yield Town(home, [str(path) for path in paths], str(huge))
    finally:
        await manager.__aexit__(None, None, None)


async def together(
    owner: Device,
    models: list[str],
    fault: Callable[[], Awaitable[object]] | None = None,
    at_token: int = 5,
) -> list[Generation]:
    """A stream of each model at once; the fault comes when each has so many tokens."""
    reached = [asyncio.Event() for _ in models]

    def watch(event: asyncio.Event) -> Callable[[Generation], None]:
        return lambda done: event.set() if len(done.token_ids) >= at_token else None

    async with asyncio.TaskGroup() as tasks:
        streams = [
            tasks.create_task(generate(owner, model, PROMPT, TOKENS, watch(event)))
            for model, event in zip(models, reached, strict=True)
        ]
        for event in reached:
            await event.wait()
        if fault is not None:
            assert not any(stream.done() for stream in streams), "over before the fault"
            await fault()
    return [stream.result() for stream in streams]


async def alone(town: Town) -> list[list[int]]:
    """The undisturbed texts of the first two models, one after the other."""
    texts = [await generate(town.devices[0], model, PROMPT, TOKENS) for model in town.models[:2]]
    assert texts[0].token_ids != texts[1].token_ids
    return [text.token_ids for text in texts]


async def test_two_models_answer_at_the_same_time(town: Town) -> None:
    expected = await alone(town)
    running = await town.running()
    assert running.keys() == {"ada", "bob"}
    assert all(len(devices) >= 2 for devices in running.values())
    for owner in town.devices[:2]:
        texts = await together(owner, town.models[:2])
        assert [text.token_ids for text in texts] == expected
        first, second = (text.times_s for text in texts)
        assert first[0] < second[-1]
        assert second[0] < first[-1], "one after the other is not at the same time"


async def test_ps_and_status_show_both(town: Town) -> None:
    await alone(town)
    for verb in ("ps", "status"):
        done = await asyncio.to_thread(potluck, verb, home=town.devices[3].home)
        assert done.returncode == 0, done.stderr
        assert "ada" in done.stdout
        assert "bob" in done.stdout
    async with town.devices[0].client() as client:
        devices = (await client.get("/potluck/ps"))["devices"]
    held = [model for device in devices for model in device["models"]]
    assert {model["model"] for model in held} == {"ada", "bob"}
    assert sum(len(model["layers"]) for model in held) == 2 * LAYERS


async def test_a_third_model_makes_the_least_recently_used_one_leave(town: Town) -> None:
    expected = await alone(town)  # ada before bob
    third = await generate(town.devices[1], town.models[2], PROMPT, TOKENS)
    assert len(third.token_ids) == TOKENS
    assert (await town.running()).keys() == {"bob", "cid"}
    leader = await town.leader()
    left = [event for event in leader.events if event["event"] == "evicted"]
    assert left[-1]["text"].startswith("ada leaves to make room for cid; it was last used")
    again = await generate(town.devices[2], town.models[0], PROMPT, TOKENS)
    assert again.token_ids == expected[0]
    assert (await town.running()).keys() == {"ada", "cid"}


async def test_while_both_are_in_conversation_a_third_is_refused_by_name(town: Town) -> None:
    """And so is one that no device could hold; neither stream notices."""
    for model in (town.models[2], *town.models[:2]):
        await generate(town.devices[1], model, PROMPT, 4)  # measured, so that the answer is quick
    expected = await alone(town)
    refusals: list[str] = []

    async def refused(model: str) -> str:
        with pytest.raises(ApiError) as caught:
            await generate(town.devices[1], model, PROMPT, 4)
        return str(caught.value)

    async def ask_for_more() -> None:  # both at once, and early: the streams are short
        refusals.extend(await asyncio.gather(refused(town.models[2]), refused(town.huge)))

    owner = town.devices[0]
    after = len(owner.events)
    texts = await together(owner, town.models[:2], ask_for_more, at_token=1)
    busy, impossible = refusals
    assert "ada for 1 conversation" in busy
    assert "bob for 1 conversation" in busy
    assert "cid does not fit beside them" in busy
    assert "huge does not fit" in impossible
    assert "short by" in impossible
    assert [text.token_ids for text in texts] == expected
    assert not [event for event in owner.events[after:] if event["event"] == "paused"]


async def test_kill_9_with_two_models_in_force_costs_no_token(town: Town) -> None:
    expected = await alone(town)
    running, leader = await town.running(), await town.leader()
    owner = next(device for device in town.devices if device is not leader)
    victim = next(
        device
        for device in town.devices
        if device not in (owner, leader) and device.device_id in running["ada"] | running["bob"]
    )
    texts = await together(owner, town.models[:2], victim.kill)
    assert [text.token_ids for text in texts] == expected
    assert (await town.running()).keys() == {"ada", "bob"}
    await victim.start()
    await town.home.settled()


async def test_the_leader_killed_keeps_both_models(town: Town) -> None:
    expected = await alone(town)
    leader = await town.leader()
    owner = next(device for device in town.devices if device is not leader)
    texts = await together(owner, town.models[:2], leader.kill)
    assert [text.token_ids for text in texts] == expected
    assert (await town.running()).keys() == {"ada", "bob"}
    await leader.start()
    await town.home.settled()
    assert [text.token_ids for text in await together(owner, town.models[:2])] == expected
