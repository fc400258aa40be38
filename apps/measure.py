"""What a fault cost, read from the devices' own events: detect, elect, plan, resume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from apps.local_mesh import Device


@dataclass(frozen=True, slots=True)
class Recovery:
    """Milliseconds. None where it did not happen or was not seen."""

    detect_ms: float | None  # from the loss until the last survivor holds the device gone
    elect_ms: float | None  # from a leader's loss being seen until the last one has a new leader
    plan_ms: float | None  # how long planning and installing took
    resume_ms: float | None  # from the loss until the next token is there


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


def recovery(
    lost: Mapping[str, float], survivors: Iterable[Device], owner: Device, leader: str | None
) -> Recovery:
    """Reads the survivors' events. `lost` says when each device (by its id) was lost; `leader` is
    who led before.
    """
    last_s = max(lost.values())
    seen, led, elected, planned = [], [], [], []
    for device in survivors:
        for device_id, lost_s in lost.items():
            at_s = _first(device, ("PeerDied", "PeerLeft"), lost_s, peer=device_id)
            seen.append(None if at_s is None else at_s - lost_s)
        if leader is not None and leader in lost:
            gone_s = _first(device, ("PeerDied", "PeerLeft"), lost[leader], peer=leader)
            led += [gone_s] if gone_s is not None else []
            elected.append(_first_elected(device, lost))
        planned += [
            event["plan_ms"]
            for event in device.events
            if event["event"] == "installed" and event["at_s"] >= last_s
        ]
    resumed_s = _first(owner, ("resumed",), last_s)
    elected_s = _last(elected)
    return Recovery(
        detect_ms=_ms(_last(seen)),
        elect_ms=_ms(elected_s - min(led) if elected_s is not None and led else None),
        plan_ms=planned[0] if planned else None,
        resume_ms=_ms(resumed_s - last_s if resumed_s is not None else None),
    )


def _first_elected(device: Device, lost: Mapping[str, float]) -> float | None:
    return next(
        (
            event["at_s"]
            for event in device.events
            if event["event"] == "LeaderElected"
            and event["at_s"] >= min(lost.values())
            and event["leader"] not in lost
        ),
        None,
    )


def _first(device: Device, kinds: tuple[str, ...], since_s: float, **fields: str) -> float | None:
    """When the device first said it after that moment."""
    return next(
        (
            event["at_s"]
            for event in device.events
            if event["event"] in kinds
            and event["at_s"] >= since_s
            and all(event.get(name) == value for name, value in fields.items())
        ),
        None,
    )


def _last(times_s: list[float | None]) -> float | None:
    """The last of them; None as soon as one is missing."""
    known = [at_s for at_s in times_s if at_s is not None]
    return max(known) if known and len(known) == len(times_s) else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else max(0.0, seconds) * 1e3
