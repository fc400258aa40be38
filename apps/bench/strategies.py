"""Ways to compute one model on the devices of a home: each is nothing but the stages of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.ids import Epoch, ModelId, PeerId, PlanId
from planner.counting import spans, whole_numbers
from planner.plan import (
    ROW_UNITS,
    Capacity,
    Job,
    Plan,
    Prediction,
    Share,
    Span,
    Split,
    Stage,
    Wire,
)

ONE: Final = "one device"
GLOO: Final = "megatron gloo"
PLANNER: Final = "planner's choice"
WORK: Final = "the work alone"
WIRE: Final = "the wire alone"
BOUNDS: Final = (WORK, WIRE)  # no device could be faster
EVEN_TP: Final = "megatron even fp32"
MOST_TILES: Final = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """What of a model can be cut."""

    layers: int
    heads: int
    columns: int


@dataclass(frozen=True, slots=True)
class Party:
    """The devices, the strongest first, and what each is worth."""

    devices: tuple[PeerId, ...]
    speeds: tuple[float, ...]

    @property
    def is_even(self) -> bool:
        return len(set(self.speeds)) == 1


@dataclass(frozen=True, slots=True)
class Strategy:
    """A name, and how it cuts a model."""

    name: str
    stages: Callable[[Sizes, Party], tuple[Stage, ...]]
    split: Split = Split.WHOLE
    wire: Wire = Wire.FP32


def one_device() -> Strategy:
    """The strongest alone: what everything is held against."""
    return Strategy(ONE, _one)


def strategies_for(party: Party, *, exact: bool = True) -> list[Strategy]:
    """All that are compared; those that would be one and the same on equal devices, once. With
    `exact`, Galaxy's and sequence parallelism with fp32 on the wire too.
    """
    found = [one_device(), Strategy("pipeline", _pipeline)]
    found.append(_shared(EVEN_TP, Split.TENSOR, Wire.FP32, even=True))
    for even in (True,) if party.is_even else (False, True):
        how = "even" if even else "by speed"
        for wire in Wire if exact else (Wire.FP16, Wire.INT8):
            found.append(_shared(f"sequence {how} {wire}", Split.SEQUENCE, wire, even=even))
            found.append(_shared(f"hybrid {how} {wire}", Split.HYBRID, wire, even=even))
        for tiles in range(2, MOST_TILES + 1):
            for split in (Split.SEQUENCE, Split.HYBRID):
                name = f"{split} {how} fp16, {tiles} tiles"
                found.append(_shared(name, split, Wire.FP16, even=even, tiles=tiles))
        found.append(_shared(f"megatron {how} fp16", Split.TENSOR, Wire.FP16, even=even))
    return found


def plan_of(model: ModelId, name: str, stages: tuple[Stage, ...], context: int) -> Plan:
    """A plan that nobody voted for: the devices of a benchmark take it as it is."""
    return Plan(
        epoch=Epoch(1, stages[0].lead),
        plan_id=PlanId.new(),
        model=model,
        model_name=name,
        job=Job.RUN,
        stages=stages,
        capacity=Capacity(1, context),
        reason=f"to measure {name}",
        predicted=Prediction(0.0, 0.0, 0, ()),
    )


def cut(total: int, weights: Sequence[float]) -> list[Span]:
    """[0, total) in proportion to the weights; each has at least one."""
    counts = whole_numbers(total, weights, [total] * len(weights))
    assert counts is not None, "there is something for each"
    return spans(counts)


def _one(sizes: Sizes, party: Party) -> tuple[Stage, ...]:
    return (Stage(Span(0, sizes.layers), (Share(party.devices[0]),)),)


def _pipeline(sizes: Sizes, party: Party) -> tuple[Stage, ...]:
    count = min(len(party.devices), sizes.layers)
    runs = cut(sizes.layers, party.speeds[:count])
    return tuple(
        Stage(run, (Share(device),)) for run, device in zip(runs, party.devices, strict=False)
    )


def _shared(name: str, split: Split, wire: Wire, *, even: bool, tiles: int = 1) -> Strategy:
    def stages(sizes: Sizes, party: Party) -> tuple[Stage, ...]:
        weights = [1.0] * len(party.devices) if even else list(party.speeds)
        shares = _shares(sizes, party.devices, weights, split)
        return (Stage(Span(0, sizes.layers), shares, split, tiles, wire),)

    return Strategy(name, stages, split, wire)


def _shares(
    sizes: Sizes, devices: Sequence[PeerId], weights: Sequence[float], split: Split
) -> tuple[Share, ...]:
    if split is Split.SEQUENCE:
        # The lead has the last rows, so that all keys and values end with it.
        last_first = cut(ROW_UNITS, [*weights[1:], weights[0]])
        rows = [last_first[-1], *last_first[:-1]]
        return tuple(Share(device, rows=part) for device, part in zip(devices, rows, strict=True))
    heads, columns = cut(sizes.heads, weights), cut(sizes.columns, weights)
    # What stands between the parts is cheap, and bound by memory rather than by speed.
    parts = cut(ROW_UNITS, [1.0] * len(devices)) if split is Split.HYBRID else [None] * len(heads)
    return tuple(
        Share(device, heads=heads[i], columns=columns[i], rows=parts[i])
        for i, device in enumerate(devices)
    )
