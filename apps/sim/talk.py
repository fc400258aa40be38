"""Conversations in a simulated home: what is asked, what must come, and what came."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

from apps.sim.clock import run_virtual
from apps.sim.equipment import Equipment
from apps.sim.home import Device, Home
from apps.sim.tiny_model import VOCABULARY
from mesh.errors import PotluckError
from runtime.sampling import Sampling
from runtime.session import Session, Wanted

PROMPTS = 6
TOKENS = 24
SETTLE_S = 4.0


def prompt(number: int) -> list[int]:
    """One of PROMPTS; some begin alike, so that caches can be used again."""
    rng = random.Random(number // 2)
    length = (
        rng.randint(66, 72) if number < 2 else rng.randint(3, 12)
    )  # a block of a chain, and not
    start = [rng.randrange(VOCABULARY) for _ in range(length)]
    return [*start, number % VOCABULARY]


class Talk:
    """Asks devices of a home, and says so in its history. `expected` are the undisturbed texts."""

    def __init__(self, home: Home, expected: list[list[int]]) -> None:
        self._home = home
        self._expected = expected
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, device: Device, number: int, tokens: int = TOKENS) -> None:
        """Somebody at this device asks for the text after a prompt; it ends with its process."""
        assert device.process is not None
        self._count += 1
        expected = self._expected[number][:tokens]
        device.say("asked", session=self._count, prompt=number, expected=expected)
        telling = self._tell(device, self._count, number, tokens)
        self._tasks.append(device.process.spawn(telling))

    async def over(self, within_s: float) -> None:
        """Returns when every conversation has ended, or its owner, or when it took too long."""
        await asyncio.wait(self._tasks, timeout=within_s)

    async def _tell(self, device: Device, session: int, number: int, tokens: int) -> None:
        got: list[int] = []
        error = None
        try:
            replays = await ask(device, prompt(number), tokens, got)
        except PotluckError as refusal:
            error, replays = f"{type(refusal).__name__}: {refusal}", -1
        device.say("answered", session=session, tokens=got, error=error, replays=replays)


async def ask(device: Device, prompt: list[int], tokens: int, got: list[int]) -> int:
    """Fills `got` with the greedy text; how often it was replayed. Raises what a session raises."""
    assert device.process is not None
    assert device.process.engine is not None
    assert device.home.equipment is not None
    opened = await device.process.engine.opener.open(device.home.equipment.model.name)
    wanted = Wanted(prompt, tokens, Sampling(), frozenset())
    session = Session(*opened.around, wanted)
    async with aclosing(session.tokens()) as chosen:
        async for token in chosen:
            got.append(token.token)
    return session.replays


def undisturbed(equipment: Equipment) -> list[list[int]]:
    """What each prompt's text is, from a home of one device to which nothing is done."""

    async def texts() -> list[list[int]]:
        home = Home(1, 0, equipment)
        home.start()
        found: list[list[int]] = [[] for _ in range(PROMPTS)]

        async def ask_all() -> None:
            for number in range(PROMPTS):
                await ask(home[0], prompt(number), TOKENS, found[number])

        assert home[0].process is not None
        await home[0].process.spawn(ask_all())
        await home.end()
        return found

    return run_virtual(texts())
