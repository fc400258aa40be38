"""A running device gets a fifth of its core: the plan leaves it between two requests, and no token
changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from apps.bench import cgroups
from apps.bench.cgroups import Group
from apps.bench.lan import Lan, why_not
from apps.local_mesh import Device
from apps.measure import generate
from mesh.config import StateFolder
from mesh.trust import MeshSecret
from runtime.stored.model_files import cache_dir, default_path, has_default_model

pytestmark = [
    pytest.mark.lan,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("gemma"),
    pytest.mark.skipif(not has_default_model(), reason="needs the default model ([gemma])"),
]

PROMPT = "Once upon a time there was a small robot who"
TOKENS = 40
MOST_REQUESTS = 8


@dataclass(slots=True)
class Pair:
    """Two devices that have the model, each in a control group of its own."""

    devices: list[Device]
    groups: list[Group]
    model: str


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    if reason := why_not() or cgroups.why_not():
        pytest.skip(reason)
    async with AsyncExitStack() as stack:
        lan = stack.enter_context(Lan(2))
        secret, devices, groups = MeshSecret.new(), [], []
        for index in range(2):
            groups.append(group := Group.make(f"{lan.prefix}-{index}"))
            stack.callback(group.remove)
            home = tmp_path / f"device{index}"
            secret.save(StateFolder.open(home))
            devices.append(
                Device(
                    f"device{index}",
                    home,
                    ("--sessions", "1", "--context", "2048", "--port", "0", "--api-port", "0"),
                    "eth0",
                    group.joining(lan.launcher(index)),
                    lan.socket_factory(index),
                )
            )
        stack.push_async_callback(_stop, devices)
        await asyncio.gather(*(device.start() for device in devices))
        yield Pair(devices, groups, str(default_path(cache_dir())))


async def _stop(devices: Sequence[Device]) -> None:
    await asyncio.gather(*(device.stop() for device in devices))


async def lead(device: Device) -> str:
    """The device with the first layers."""
    async with device.client() as client:
        (plan,) = (await client.get("/potluck/status"))["plans"]
    return str(plan["stages"][0]["device"])


def said(pair: Pair, kind: str, text: str) -> list[dict[str, Any]]:
    return [
        event
        for device in pair.devices
        for event in device.events
        if event["event"] == kind and text in event.get("text", "")
    ]


async def test_a_device_that_becomes_slow_is_left_between_two_requests(pair: Pair) -> None:
    owner = pair.devices[0]
    expected = (await generate(owner, pair.model, PROMPT, TOKENS)).token_ids
    await generate(owner, pair.model, PROMPT, TOKENS)
    slow = await lead(owner)
    number = next(n for n, one in enumerate(pair.devices) if one.device_id == slow)
    pair.groups[number].limit_cores(0.2)
    for _ in range(MOST_REQUESTS):
        text = await generate(owner, pair.model, PROMPT, TOKENS)
        assert text.token_ids == expected
        if said(pair, "planning", "times as long as it measured"):
            break
        await asyncio.sleep(2.0)  # a person reads; the leader looks
    async with asyncio.timeout(60):
        while await lead(owner) == slow:
            await asyncio.sleep(0.1)
    text = await generate(owner, pair.model, PROMPT, TOKENS)
    assert text.token_ids == expected
    print(said(pair, "planning", "times as long")[0]["text"])
