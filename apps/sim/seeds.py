"""A seed played to its end: a random home in random trouble, and what its history tells."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from apps.sim.check import violations
from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.faults import storm
from apps.sim.history import HOME
from apps.sim.home import Home

CALM_S = 5.0  # from the end of all faults until everybody agrees, also on a leader


@dataclass(frozen=True, slots=True)
class Played:
    """`history` is the text that `apps.sim.check` reads."""

    seed: int
    wrong: tuple[str, ...]
    history: str
    digest: str
    simulated_s: float

    @property
    def again(self) -> str:
        """What a person types to see it once more."""
        return f"potluck chaos --seeds 1 --first-seed {self.seed}"


def play(seed: int) -> Played:
    """The same for the same seed; takes some tenths of a second."""
    home = run_virtual(_trouble(seed))
    history = home.history
    wrong = tuple(violations(history.lines()))
    return Played(seed, wrong, history.text(), history.digest(), history.entries[-1].at_s)


async def _trouble(seed: int) -> Home:
    rng = random.Random(seed)
    home = Home(rng.choice((2, 3, 4, 5)), seed)
    home.start()
    await storm(home, rng, for_s=rng.uniform(20.0, 40.0))
    home.history.say(HOME, virtual_loop().time(), "calm", within_s=CALM_S)
    await asyncio.sleep(CALM_S)
    home.history.say(HOME, virtual_loop().time(), "over")
    for device in home.running:
        await device.crash()
    return home
