"""What a fault cost, read from the devices' own events: detect, elect, plan, resume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median

from apps.local_mesh import Device, Event


@dataclass(frozen=True, slots=True)
class Recovery:
    """Milliseconds from the moment of the fault, except `plan_ms`, which is how long planning and
    installing took. None where it did not happen or was not seen.
    """

    detect_ms: float | None  # the last survivor holds the device dead
    elect_ms: float | None  # the last survivor accepts a new leader; None if the leader lives
    plan_ms: float | None
    resume_ms: float | None  # the next token is there

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(slots=True)
class Generation:
    """The tokens of one stream, and when each came (seconds of the shared monotonic clock)."""

    token_ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def tokens_per_s(self) -> float:
        """By the median gap, so that one long pause does not hide how fast the rest came."""
        gaps = [after - before for before, after in pairwise(self.times_s)]
        return 1 / median(gaps) if gaps and median(gaps) > 0 else 0.0


async def generate(
    owner: Device,
    model: str,
    prompt: str,
    max_tokens: int,
    on_token: Callable[[Generation], None] = lambda generation: None,
) -> Generation:
    """A greedy generation through the owner's API; `on_token` is called as tokens come."""
    done = Generation()
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    async with owner.client() as client, aclosing(client.stream("/v1/completions", body)) as events:
        async for event in events:
            choice = event["choices"][0]
            now_s = time.monotonic()
            done.token_ids += choice["token_ids"]
            done.times_s += [now_s] * len(choice["token_ids"])
            done.text += choice["text"]
            on_token(done)
    return done


async def generate_and(
    owner: Device,
    model: str,
    prompt: str,
    max_tokens: int,
    at_token: int,
    fault: Callable[[], Awaitable[object]],
    on_token: Callable[[Generation], None] = lambda generation: None,
) -> Generation:
    """Like `generate`, but awaits `fault` once, as soon as `at_token` tokens have come."""
    reached = asyncio.Event()

    def watch(generation: Generation) -> None:
        on_token(generation)
        if len(generation.token_ids) >= at_token:
            reached.set()

    generating = asyncio.ensure_future(generate(owner, model, prompt, max_tokens, watch))
    waiting = asyncio.ensure_future(reached.wait())
    try:
        await asyncio.wait([generating, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not generating.done():
            await fault()
        return await generating
    finally:
        waiting.cancel()
        generating.cancel()


def recovery(fault_s: float, lost: Device, survivors: Iterable[Device], owner: Device) -> Recovery:
    """Reads the survivors' events after the fault."""
    detected, elected, planned = [], [], []
    for device in survivors:
        after = [event for event in device.events if event["at_s"] >= fault_s]
        detected.append(_first(after, "PeerDied", lambda e: e["peer"] == lost.device_id))
        elected.append(_first(after, "LeaderElected", lambda e: e["leader"] != lost.device_id))
        planned += [event["plan_ms"] for event in after if event["event"] == "installed"]
    resumed = _first(
        [event for event in owner.events if event["at_s"] >= fault_s], "resumed", lambda e: True
    )
    return Recovery(
        detect_ms=_last_ms(detected, fault_s),
        elect_ms=_last_ms(elected, fault_s),
        plan_ms=planned[0] if planned else None,
        resume_ms=_last_ms([resumed], fault_s),
    )


def _first(events: list[Event], kind: str, wanted: Callable[[Event], bool]) -> float | None:
    return next((e["at_s"] for e in events if e["event"] == kind and wanted(e)), None)


def _last_ms(times_s: list[float | None], fault_s: float) -> float | None:
    """When the last of them was there; None as soon as one is missing."""
    known = [at_s for at_s in times_s if at_s is not None]
    return (max(known) - fault_s) * 1e3 if known and len(known) == len(times_s) else None
