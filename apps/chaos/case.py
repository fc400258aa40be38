"""A seed, and all that it stands for: the same accident happens again under the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

TOKENS = 48  # of each text: about 3 s of two cores with the default model
PROMPTS = (
    "The old house by the sea had stood empty for years, until one evening",
    "Once upon a time there was a small robot who",
    "The three most important things about bread are",
    "def fibonacci(n):",
    "Dear neighbours, we are writing to you because",
)
MIN_DEVICES, MAX_DEVICES = 3, 5


@dataclass(frozen=True, slots=True)
class Case:
    """How many devices there are, whose conversation it is, to whom it happens, and when."""

    seed: int
    devices: int
    owner: int  # an owner that is lost takes its client with it, so it never is
    victim: int
    second: int  # of the others, where a fault needs two
    at_token: int
    prompt: str
    chance: float  # 0..1, for whatever else a fault has to choose

    @classmethod
    def of(cls, seed: int, devices: range = range(MIN_DEVICES, MAX_DEVICES + 1)) -> Case:
        """`devices` bounds how many there may be."""
        rng = random.Random(seed)  # noqa: S311 - chooses accidents; no secret
        count = rng.choice(devices)
        owner, victim, second = rng.sample(range(count), 3)
        at_token, prompt = rng.randint(1, TOKENS - 8), rng.choice(PROMPTS)
        return cls(seed, count, owner, victim, second, at_token, prompt, rng.random())
