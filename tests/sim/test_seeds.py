"""Random homes in random trouble: whatever happened, nothing forbidden did, and it ends well.

One seed alone: POTLUCK_SEED=17 .venv/bin/python -m pytest tests/sim/test_seeds.py
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from apps.sim.clock import run_virtual
from apps.sim.faults import storm
from apps.sim.history import disagreements, violations
from apps.sim.home import Home

SEEDS = 200
CHUNK = 10
CALM_S = 5.0


def chosen() -> list[range]:
    one = os.environ.get("POTLUCK_SEED")
    if one is not None:
        return [range(int(one), int(one) + 1)]
    return [range(first, first + CHUNK) for first in range(0, SEEDS, CHUNK)]


@pytest.mark.parametrize("seeds", chosen(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_any_trouble_ends_in_one_view(seeds: range) -> None:
    for seed in seeds:
        done, wrong = run_virtual(trouble(seed))
        again = f"POTLUCK_SEED={seed} .venv/bin/python -m pytest tests/sim/test_seeds.py"
        assert not wrong, "\n".join([f"seed {seed}", *wrong, *done, "again: " + again])


async def trouble(seed: int) -> tuple[list[str], list[str]]:
    """What was done to a home, and what was wrong in the end."""
    rng = random.Random(seed)
    home = Home(rng.choice((2, 3, 4, 5)), seed)
    home.start()
    done = await storm(home, rng, for_s=rng.uniform(20.0, 40.0))
    await asyncio.sleep(CALM_S)
    views = {device.name: device.view for device in home.running}
    wrong = violations(home.history) + disagreements(views)
    for device in home.running:
        await device.crash()
    return done, wrong
