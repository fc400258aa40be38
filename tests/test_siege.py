"""Reliability test 22, in its short form, on a tiny model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from apps.bench.lan import why_not
from mesh.limits import MAX_UNKNOWN_SOCKETS, TLS_HANDSHAKE_TIMEOUT_S
from tests.attack import FAKES, IDLE
from tests.runtime.tiny_model import write_tiny_gemma
from tests.siege import ATTACK_S, besiege

pytestmark = [pytest.mark.lan, pytest.mark.xdist_group("siege")]

MAX_GROWTH_MIB = 64
# A member's own links, and a descriptor for each socket that has not said who it is.
MAX_DESCRIPTORS_GAINED = MAX_UNKNOWN_SOCKETS + 20
LATE_S = 1.0  # on a machine that is busy with other tests


async def test_members_go_on_while_a_machine_does_its_worst(tmp_path: Path) -> None:
    """How fast they go on is measured by `python -m tests.siege`, on a machine of its own."""
    if reason := why_not():
        pytest.skip(reason)
    path = write_tiny_gemma(
        tmp_path / "house.gguf",
        **{"layers": 6, "hidden": 256, "heads": 8, "head_dim": 32, "ffn": 1024, "seed": 3},
    )
    async with asyncio.timeout(6 * ATTACK_S):
        siege = await besiege(str(path), "300MB", pairs=1, tokens=400)
    found = siege.as_dict()
    assert found["tokens_equal"]
    assert not found["false_deaths"]
    assert found["rss_growth_mib"] <= MAX_GROWTH_MIB
    assert found["descriptors_gained"] <= MAX_DESCRIPTORS_GAINED
    assert found["longest_open_s"] <= TLS_HANDSHAKE_TIMEOUT_S + LATE_S
    assert found["tried"]["idle"] >= IDLE
    assert found["tried"]["fakes"] >= FAKES / 2
    assert found["tried"]["slow"]
    assert found["tried"]["headers"]
