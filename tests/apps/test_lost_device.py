"""Devices lost in mid-generation, for real: the client sees a pause, never an error."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from apps.client import ApiError
from apps.measure import generate, generate_and
from runtime.stored.model_files import has_default_model
from tests.apps.conftest import TinyMesh

pytestmark = pytest.mark.timeout(300)
NEEDS_MODEL = pytest.mark.skipif(
    not has_default_model(), reason="the default model's package is not installed ([gemma])"
)


@NEEDS_MODEL
@pytest.mark.xdist_group("gemma")
async def test_the_demo_keeps_its_word() -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "apps.cli", "demo", "--json", "--tokens", "32"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["devices"] == 3
    assert result["leader_changes"] == 1
    assert result["tokens"] == 32
    assert result["tokens_equal"] is True
    assert len(result["resume_ms"]) == 2
    assert all(resume_ms is not None for resume_ms in result["resume_ms"])
    assert result["tokens_per_s"] > 0
    assert len(result["plan"]["stages"]) == 3


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("tiny_mesh")
async def test_a_stopped_process_is_replaced_and_taken_back(tiny_mesh: TinyMesh) -> None:
    """Reliability test 6: SIGSTOP closes no socket, so only silence tells."""
    home, model = tiny_mesh.home, tiny_mesh.model
    expected = await generate(home.devices[0], model, "the cat", 100)
    status = await mesh_status(tiny_mesh)
    victim = next(d for d in home.devices[1:] if d.device_id in plan_devices(status))

    async def stop() -> None:
        victim.send_signal(signal.SIGSTOP)

    try:
        generation = await generate_and(home.devices[0], model, "the cat", 100, 5, stop)
    finally:
        victim.send_signal(signal.SIGCONT)
    assert generation.token_ids == expected.token_ids
    await home.settled()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("tiny_mesh")
async def test_a_graceful_stop_costs_no_token(tiny_mesh: TinyMesh) -> None:
    """Reliability test 7: it hands over, caches and all, before it says goodbye."""
    home, model = tiny_mesh.home, tiny_mesh.model
    expected = await generate(home.devices[0], model, "the hat", 100)
    status = await mesh_status(tiny_mesh)
    leaver = next(d for d in home.devices[1:] if d.device_id in plan_devices(status))
    before = len(home.devices[0].events)
    generation = await generate_and(home.devices[0], model, "the hat", 100, 5, leaver.stop)
    assert generation.token_ids == expected.token_ids
    said = home.devices[0].events[before:]
    replayed = [one["replayed_tokens"] for one in said if one["event"] == "resumed"]
    assert replayed, "the conversation moved"
    assert set(replayed) == {0}, [one.get("text") for one in (*said, *leaver.events[-12:])]
    last = [one["event"] for one in leaver.events if one["event"] in ("handed-over", "leaving")]
    assert last == ["handed-over", "leaving"]
    assert not any(one["event"] in ("PeerDied", "PeerSuspected") for one in said)
    await leaver.start()
    await home.settled()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("tiny_mesh")
async def test_a_second_ctrl_c_waits_for_no_hand_over(tiny_mesh: TinyMesh) -> None:
    """The text goes on all the same."""
    home, model = tiny_mesh.home, tiny_mesh.model
    expected = await generate(home.devices[0], model, "the mat", 100)
    status = await mesh_status(tiny_mesh)
    leaver = next(d for d in home.devices[1:] if d.device_id in plan_devices(status))
    before = len(leaver.events)

    async def hurry() -> None:
        leaver.send_signal(signal.SIGINT)
        await leaver.wait_event(
            lambda event: event["event"] == "handing-over", after=before, timeout_s=10
        )
        leaver.send_signal(signal.SIGINT)
        await leaver.wait_event(
            lambda event: event["event"] == "leaving", after=before, timeout_s=2
        )

    generation = await generate_and(home.devices[0], model, "the mat", 100, 5, hurry)
    assert generation.token_ids == expected.token_ids
    await leaver.stop()
    await leaver.start()
    await home.settled()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.xdist_group("tiny_mesh")
async def test_when_nothing_can_hold_the_model_the_client_hears_why(tiny_mesh: TinyMesh) -> None:
    """Reliability test 15: two of three lost, and one cannot hold the model. One clear error, and
    all is well when they return.
    """
    home, model = tiny_mesh.home, tiny_mesh.model
    expected = await generate(home.devices[0], model, "the rat", 100)

    async def lose_both() -> None:
        await asyncio.gather(home.devices[1].kill(), home.devices[2].kill())

    with pytest.raises(ApiError, match=r"does not fit.*short by"):
        async with asyncio.timeout(60):
            await generate_and(home.devices[0], model, "the rat", 100, 5, lose_both)
    await asyncio.gather(home.devices[1].start(), home.devices[2].start())
    await home.settled()
    again = await generate(home.devices[0], model, "the rat", 100)
    assert again.token_ids == expected.token_ids


async def mesh_status(mesh: TinyMesh) -> dict[str, Any]:
    async with mesh.owner.client() as client:
        return await client.get("/potluck/status")


def plan_devices(status: dict[str, Any]) -> set[str]:
    return {stage["device"] for plan in status["plans"] for stage in plan["stages"]}
