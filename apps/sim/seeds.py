"""A seed played to its end: a random home in random trouble, and what its history tells.

Of two seeds one is a home whose devices only meet, which is played quickly; the other's devices
plan, compute and talk as well.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from apps.sim.check import violations
from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.equipment import Equipment
from apps.sim.faults import storm
from apps.sim.history import HOME
from apps.sim.home import Home
from apps.sim.talk import PROMPTS, Talk, undisturbed
from apps.sim.tiny_model import write_tiny_model
from runtime.checkpoints import open_model

CALM_S = 5.0  # from the end of all faults until everybody agrees, also on a leader
ANSWERED_S = 60.0  # from then until every conversation has ended


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


class Theatre:
    """Where seeds are played: the model that the homes share, and its undisturbed texts."""

    def __init__(self, folder: Path) -> None:
        path = write_tiny_model(folder / "tiny")
        self.equipment = Equipment(folder / "disk", path, open_model(path).profile())
        self.texts = undisturbed(self.equipment)

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Theatre]:
        """In a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="potluck-chaos-") as folder:
            yield cls(Path(folder))

    def play(self, seed: int) -> Played:
        """The same for the same seed; takes some tenths of a second."""
        home = run_virtual(self._whole(seed) if seed % 2 else meet(seed))
        history = home.history
        wrong = tuple(violations(history.lines()))
        return Played(seed, wrong, history.text(), history.digest(), history.entries[-1].at_s)

    async def _whole(self, seed: int) -> Home:
        rng = random.Random(seed)
        count = rng.choice((2, 3, 4, 5))
        names = [f"d{number}" for number in range(count)]
        shares = {name: rng.choice((0.4, 0.6, 0.6, 1.2)) for name in names}
        speeds = {name: rng.choice((0.5, 1.0, 2.0)) for name in names}
        home = Home(count, seed, replace(self.equipment, shares=shares, speeds=speeds))
        home.start()
        talk = Talk(home, self.texts)
        talking = asyncio.create_task(_keep_talking(home, talk, rng))
        await storm(home, rng, for_s=rng.uniform(15.0, 25.0))
        talking.cancel()
        await _calm(home)
        for device in home.running:
            talk.begin(device, rng.randrange(PROMPTS))
        await talk.over(ANSWERED_S)
        await _over(home)
        return home


async def meet(seed: int) -> Home:
    """A home whose devices only meet and elect, played to its end."""
    rng = random.Random(seed)
    home = Home(rng.choice((2, 3, 4, 5)), seed)
    home.start()
    await storm(home, rng, for_s=rng.uniform(20.0, 40.0))
    await _calm(home)
    await _over(home)
    return home


async def _keep_talking(home: Home, talk: Talk, rng: random.Random) -> None:
    await asyncio.sleep(3.0)
    while True:
        if home.running:
            talk.begin(rng.choice(home.running), rng.randrange(PROMPTS))
        await asyncio.sleep(rng.expovariate(1 / 3.0))


async def _calm(home: Home) -> None:
    home.history.say(HOME, virtual_loop().time(), "calm", within_s=CALM_S)
    await asyncio.sleep(CALM_S)


async def _over(home: Home) -> None:
    home.history.say(HOME, virtual_loop().time(), "over")
    await home.end()
