"""Reliability test 22, in its short form, on a tiny model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from apps.bench.lan import why_not
from mesh.limits import MAX_UNKNOWN_SOCKETS
from tests.runtime.tiny_model import write_tiny_gemma
from tests.siege import besiege, is_well

pytestmark = [pytest.mark.lan, pytest.mark.xdist_group("siege")]

ATTACK_S = 8.0  # longer than any silent socket stays open


async def test_members_go_on_while_a_machine_does_its_worst(tmp_path: Path) -> None:
    """How fast they go on is measured by `python -m tests.siege`, on a machine of its own."""
    if reason := why_not():
        pytest.skip(reason)
    path = write_tiny_gemma(
        tmp_path / "house.gguf",
        **{"layers": 6, "hidden": 256, "heads": 8, "head_dim": 32, "ffn": 1024, "seed": 3},
    )
    async with asyncio.timeout(100):
        siege = await besiege(str(path), "300MB", pairs=1, tokens=60, attack_s=ATTACK_S, before=())
    found = siege.as_dict()
    assert is_well(found), found
    # How much of it the attackers manage, beside other tests, is up to the machine.
    assert found["tried"]["idle"] >= MAX_UNKNOWN_SOCKETS
    assert all(found["tried"][kind] for kind in ("tls", "headers", "slow", "fakes"))
