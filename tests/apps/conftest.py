"""A mesh of three real daemons on loopback, running a tiny model that no one of them can hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from apps.chaos.home import Home
from apps.local_mesh import Device
from apps.planning.profiles import SCRATCH_BYTES
from planner.cost import predict
from planner.plan import Capacity, Share, Span, Stage
from planner.profile import Cluster, Curve, DeviceProfile
from runtime.weights import Checkpoint
from tests.runtime.room import peer
from tests.runtime.tiny_model import write_tiny_gemma

LAYERS = 6
SESSIONS = 2
CONTEXT = 128


@dataclass(frozen=True, slots=True)
class TinyMesh:
    """The devices, the model's path, and an API client's usual way in."""

    home: Home
    model: str

    @property
    def owner(self) -> Device:
        return self.home.devices[0]


def needed_bytes(checkpoint: Checkpoint) -> int:
    """What one device would need for everything, scratch included."""
    profile, one = checkpoint.profile(), peer(1)
    device = DeviceProfile(one, "one", 1 << 40, Curve(((1, 0.001),)), 0.001, SCRATCH_BYTES)
    stage = Stage(Span(0, len(profile.layers)), (Share(one),))
    prediction = predict((stage,), Cluster((device,), ()), profile, Capacity(SESSIONS, CONTEXT))
    return dict(prediction.memory_bytes)[one]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=3)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny_mesh(tiny_path: Path) -> AsyncIterator[TinyMesh]:
    """Each device may use two thirds of what the model takes, so any two must share it."""
    weights = needed_bytes(Checkpoint.open(tiny_path)) - SCRATCH_BYTES
    memory = SCRATCH_BYTES + weights * 2 // 3
    async with asyncio.timeout(90):
        manager = Home.of(3, str(memory), sessions=SESSIONS, context=CONTEXT)
        home = await manager.__aenter__()
    try:
        yield TinyMesh(home, str(tiny_path))
    finally:
        await manager.__aexit__(None, None, None)
