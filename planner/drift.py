"""Drift: what the devices of a plan really take, beside what was predicted; curves corrected by it.

A device becomes slower: it grows warm, saves its battery, somebody else uses it. What it measured
of itself no longer holds then, for any plan. So its curves are multiplied by what was seen, and the
search that chose the plan says whether another one repays its change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeVar

from mesh.errors import PlanError
from mesh.ids import PeerId
from planner.cost import predict
from planner.plan import Plan, Prediction, Stage, StageForecast
from planner.profile import (
    Cluster,
    Curve,
    DeviceProfile,
    LinkProfile,
    ModelProfile,
    PartCurves,
    ShareCurves,
    WireCost,
)
from planner.request import Request, request_of

MIN_TOKEN_TURNS = 16  # the median of fewer says little
MIN_PROMPT_TURNS = 4
# Choices, well above what predictions are off by, and what one home's hour differs from the next.
TELLING = 1.4  # times as long as thought so far: less changes nothing
LINK_TELLING = 2.0  # a link is busy until what it carried is acknowledged, which others delay
COMMON = 1.25  # all devices may be off by so much alike: that is the model, or how one measures
MOST = 100.0  # times: more is no device that could be planned with, or no honest one
LEAST_S = 2e-3  # of a pass: nobody notices less
LEAST_WIRE_S = 20e-3  # that a pass is to be on the wire: less is delays, not bytes

Link = tuple[PeerId, PeerId]  # from, to
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the last turns of a device: one of so many rows, in seconds."""

    turns: int
    rows: int
    conversations: float  # that shared a turn, on average
    compute_s: float
    wire_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """What a device measured under a plan; None where there was no such turn."""

    tokens: Seen | None
    prompts: Seen | None


@dataclass(frozen=True, slots=True)
class Factors:
    """How many times as long as it measured each device, or link, takes; those not named: once."""

    devices: Mapping[PeerId, float] = field(default_factory=dict)
    links: Mapping[Link, float] = field(default_factory=dict)


def observed(
    plan: Plan, cluster: Cluster, model: ModelProfile, paces: Mapping[PeerId, Pace]
) -> Factors:
    """What these paces say; nothing of those with too few turns, or with several conversations at
    once. `cluster` is what the devices measured. Empty where the plan no longer fits the cluster.
    """
    times: dict[PeerId, float] = {}
    links: dict[Link, float] = {}
    try:
        for device, pace in paces.items():
            found = _times(plan, cluster, model, device, pace)
            if found is not None:
                times[device] = found
            links |= _link_times(plan, cluster, model, device, pace)
    except PlanError:
        return Factors()  # a device of it is gone
    common = min(max(min(times.values(), default=1.0), 1 / COMMON), COMMON)
    return Factors({one: factor / common for one, factor in times.items()}, links)


def told(known: Factors, found: Factors) -> Factors:
    """What is believed from now on: the same, but for what is telling."""
    return Factors(
        _believed(known.devices, found.devices, TELLING),
        _believed(known.links, found.links, LINK_TELLING),
    )


def without(known: Factors, device: PeerId) -> Factors:
    """Of a device that went nothing is known: it may come back as another."""
    return Factors(
        {one: factor for one, factor in known.devices.items() if one != device},
        {link: factor for link, factor in known.links.items() if device not in link},
    )


def corrected(cluster: Cluster, factors: Factors) -> Cluster:
    """What the devices and links take now."""
    devices = tuple(_slower(one, factors.devices.get(one.device, 1.0)) for one in cluster.devices)
    links = tuple(
        _narrower(link, factors.links.get((link.source, link.target), 1.0))
        for link in cluster.links
    )
    return replace(cluster, devices=devices, links=links)


def drift_text(cluster: Cluster, known: Factors, now: Factors) -> str:
    """What changed, such as "desktop takes 3.1 times as long as it measured"; "" for nothing."""
    words = [
        f"{cluster.name_of(one)} takes {factor:.1f} times as long as it measured"
        for one, factor in sorted(now.devices.items())
        if factor != known.devices.get(one, 1.0)
    ]
    words += [
        f"the link from {cluster.name_of(source)} to {cluster.name_of(target)} takes "
        f"{factor:.1f} times as long as measured"
        for (source, target), factor in sorted(now.links.items())
        if factor != known.links.get((source, target), 1.0)
    ]
    return ", ".join(words)


# --- measured beside predicted -------------------------------------------------------------------


def _times(
    plan: Plan, cluster: Cluster, model: ModelProfile, device: PeerId, pace: Pace
) -> float | None:
    """How many times as long as predicted a device computes; None where too little was seen."""
    if _tells(pace.tokens, MIN_TOKEN_TURNS):
        assert pace.tokens is not None
        expected_s = sum(one.decode.compute_s for one in _of(plan, cluster, model, device))
        if (found := _ratio(pace.tokens.compute_s, expected_s)) is not None:
            return found
    if _tells(pace.prompts, MIN_PROMPT_TURNS):
        assert pace.prompts is not None
        rows = pace.prompts.rows
        expected_s = sum(one.prefill.compute_s for one in _of(plan, cluster, model, device, rows))
        return _ratio(pace.prompts.compute_s, expected_s)
    return None


def _link_times(
    plan: Plan, cluster: Cluster, model: ModelProfile, device: PeerId, pace: Pace
) -> dict[Link, float]:
    """Of the one link over which a device sends; of several nobody knows which is slow."""
    targets = _targets(plan.stages, device)
    if len(targets) != 1 or not _tells(pace.prompts, MIN_PROMPT_TURNS):
        return {}
    assert pace.prompts is not None
    found = _of(plan, cluster, model, device, pace.prompts.rows)
    expected_s = sum(one.prefill.wire_s for one in found)
    times = _ratio(pace.prompts.wire_s, expected_s)
    if expected_s < LEAST_WIRE_S or times is None:
        return {}
    return {(device, targets.pop()): times}


def _tells(seen: Seen | None, turns: int) -> bool:
    return seen is not None and seen.turns >= turns and seen.conversations < 1.05 and seen.rows > 0


def _ratio(measured_s: float, expected_s: float) -> float | None:
    """None where one of them is no time. What was measured comes from another device."""
    if not (0 < measured_s < inf and 0 < expected_s < inf):
        return None
    if abs(measured_s - expected_s) < LEAST_S:
        return 1.0
    return min(max(measured_s / expected_s, 1 / MOST), MOST)


def _of(
    plan: Plan, cluster: Cluster, model: ModelProfile, device: PeerId, rows: int | None = None
) -> list[StageForecast]:
    """What a device of the plan is expected to do, with so many rows of a prompt in one go."""
    answer = request_of(model).answer
    request = Request(rows, answer) if rows else request_of(model)
    stages = tuple(replace(one, tiles=1) if len(one.shares) == 1 else one for one in plan.stages)
    found: Prediction = predict(stages, cluster, model, plan.capacity, plan.head, request)
    return [one for one in found.forecasts if stages[one.stage].shares[one.share].device == device]


def _targets(stages: Iterable[Stage], device: PeerId) -> set[PeerId]:
    """To whom a device sends rows."""
    stages = tuple(stages)
    found: set[PeerId] = set()
    for number, stage in enumerate(stages):
        members = {share.device for share in stage.shares}
        if device in members:
            found |= members - {device}
        if device == stage.lead and number + 1 < len(stages):
            found.add(stages[number + 1].lead)
    return found


def _believed(
    known: Mapping[Key, float], found: Mapping[Key, float], telling: float
) -> dict[Key, float]:
    now = dict(known)
    for one, factor in found.items():
        before = known.get(one, 1.0)
        if max(factor / before, before / factor) >= telling:
            now[one] = factor
    return now


# --- curves --------------------------------------------------------------------------------------


def _slower(device: DeviceProfile, factor: float) -> DeviceProfile:
    if factor == 1.0:
        return device
    return replace(
        device,
        layer=_by(device.layer, factor),
        head_s=device.head_s * factor,
        parts=device.parts and _parts(device.parts, factor),
        wire=device.wire and _wire(device.wire, factor),
    )


def _narrower(link: LinkProfile, factor: float) -> LinkProfile:
    return replace(link, bytes_per_s=link.bytes_per_s / factor)


def _by(curve: Curve, factor: float) -> Curve:
    return Curve(tuple((rows, factor * seconds) for rows, seconds in curve.points))


def _parts(parts: PartCurves, factor: float) -> PartCurves:
    return PartCurves(
        _share(parts.whole, factor),
        _share(parts.small, factor),
        _by(parts.connect, factor),
        factor * parts.add_s,
        factor * parts.fp16_s,
        factor * parts.int8_s,
    )


def _share(share: ShareCurves, factor: float) -> ShareCurves:
    return ShareCurves(
        share.heads,
        share.columns,
        _by(share.project, factor),
        _by(share.attend, factor),
        _by(share.close, factor),
        _by(share.mlp, factor),
    )


def _wire(wire: WireCost, factor: float) -> WireCost:
    return WireCost(
        factor * wire.send_s_per_byte,
        factor * wire.send_s_per_frame,
        factor * wire.receive_s_per_byte,
        factor * wire.receive_s_per_frame,
        wire.own_core,
    )
