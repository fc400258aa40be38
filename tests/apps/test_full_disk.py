"""Reliability test 24 on a real disk that is full: a small tmpfs under each device's folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from apps.chaos.equipment import Equipment
from apps.chaos.home import Home
from apps.measure import generate

pytestmark = [pytest.mark.lan, pytest.mark.xdist_group("tiny_mesh")]

TOKENS = 40


async def test_a_device_with_a_full_disk_follows_the_next_leader(tiny_path: Path) -> None:
    """What was written before is written over in place: for that a full disk has room."""
    equipment = Equipment(disks=True)
    if reason := equipment.why_not():
        pytest.skip(reason)
    model = str(tiny_path)
    async with (
        asyncio.timeout(90),
        Home.of(2, "300MB", equipment=equipment, sessions=1, context=128) as home,
    ):
        full, other = home.devices
        expected = (await generate(full, model, "the cat", TOKENS)).token_ids
        home.disks[0].fill()
        assert (await generate(full, model, "the cat", TOKENS)).token_ids == expected
        await other.kill()  # whoever led: what is left takes a new epoch for its plan
        assert (await generate(full, model, "the cat", TOKENS)).token_ids == expected
        await other.start()
        await home.settled()
        assert (await generate(other, model, "the cat", TOKENS)).token_ids == expected
        async with full.client() as client:
            assert (await client.get("/potluck/status"))["trouble"] == ""
