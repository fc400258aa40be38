"""How long the parts of a layer take on this device: what the planner cuts and puts together anew.

A pass through a layer is timed where a walk over several devices would take it apart. A small share
of the layer is measured as well, since half of one takes more than half as long.

Where one thread computes, its own time is taken: a limit on the processor stops it now and then for
longer than a part takes, and few passes would not show how often. What such a second takes by the
clock is known from all passes together (`Spent`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from planner.plan import Span, Wire
from planner.profile import Curve, PartCurves, ShareCurves
from runtime.compute.torch_device import CPU, synchronize
from runtime.cut import Cut
from runtime.models.parts import AttentionPart, Layer
from runtime.walks.wire import pack, unpack

SMALL_PART: Final = 4  # a small share has this part of the heads and columns
SMALL_UNIT: Final = 32  # columns: no form of weights has longer blocks that a share must not cut
SMALL_BUDGET_S: Final = 0.15  # for one row count of a small share; what takes longer is derived
LEAST_S: Final = 1e-9  # no clock is finer
FEW_TOKENS: Final = 16  # up to here a layer is bound by reading its weights; beyond, by arithmetic
UNLIMITED: Final = 1.1  # what a second takes at most by the clock where nothing stops it
LIMITED_S: Final = 0.2  # two periods of a limit on the processor, the usual one being 0.1 s
LIMITED_RUNS: Final = 3
NUMBERS: Final = (256, 1024)  # that are packed and added to say what a number takes
NUMBER_REPEATS: Final = 5


@dataclass(frozen=True, slots=True)
class PartSeconds:
    """Of one pass through a layer, or the mean of some."""

    project: float
    attend: float
    close: float
    mlp: float
    connect: float
    wall: float  # all of it, by the clock on the wall

    @property
    def total(self) -> float:
        """Of the parts."""
        return self.project + self.attend + self.close + self.mlp + self.connect

    def by_clock(self, stretch: float) -> PartSeconds:
        """The parts as they take by the clock, where a second of theirs takes `stretch`."""
        return PartSeconds(
            self.project * stretch,
            self.attend * stretch,
            self.close * stretch,
            self.mlp * stretch,
            self.connect * stretch,
            self.total * stretch,
        )


@dataclass(slots=True)
class Spent:
    """All passes so far, in runs of some periods of a limit: their own time beside the clock's."""

    stretches: list[float] = field(default_factory=list)  # of each run
    own_s: float = 0.0  # since the last
    clock_s: float = 0.0

    def note(self, one: PartSeconds) -> PartSeconds:
        self.own_s += one.total
        self.clock_s += one.wall
        if self.clock_s >= LIMITED_S:
            self.stretches.append(self.clock_s / self.own_s)
            self.own_s = self.clock_s = 0.0
        return one

    @property
    def stretch(self) -> float:
        """What a second of the parts takes by the clock: the median, for now and then somebody else
        takes the processor for a while.
        """
        if self.stretches:
            return median(self.stretches)
        return self.clock_s / self.own_s if self.own_s else 1.0

    @property
    def is_told(self) -> bool:
        """Whether there was a pass at all."""
        return bool(self.stretches) or self.own_s > 0

    @property
    def is_known(self) -> bool:
        """Whether that can be told: of a device with a limit, from some runs."""
        return len(self.stretches) >= LIMITED_RUNS or self.stretch < UNLIMITED


def is_alone(device: torch.device) -> bool:
    """Whether one thread computes, whose own time can be taken."""
    return device == CPU and torch.get_num_threads() == 1


def time_parts(layer: Layer[Any], hidden: Tensor, at: Any, device: torch.device) -> PartSeconds:
    """Rows [S, hidden] through a layer, of whichever kind; they stand where `at` says."""
    attention, mlp = layer.attention, layer.parts[-1]
    clock = Clock(device)
    began_s = time.perf_counter()
    x = layer.enter(hidden)
    entered_s = clock.lap()
    project_s, attend_s, close_s, added = _attention(attention, x, at, clock)
    hidden, x = layer.connect(0, hidden, added)
    between_s = clock.lap()
    added = mlp.closing(mlp.inside(mlp.opening(x), at))
    mlp_s = clock.lap()
    layer.connect(len(layer.parts) - 1, hidden, added)
    connect_s = entered_s + between_s + clock.lap()
    wall_s = max(time.perf_counter() - began_s, LEAST_S)
    return PartSeconds(project_s, attend_s, close_s, mlp_s, connect_s, wall_s)


def mean(parts: Sequence[PartSeconds]) -> PartSeconds:
    return _combined(parts, lambda numbers: sum(numbers) / len(numbers))


def middle(parts: Sequence[PartSeconds]) -> PartSeconds:
    """The median of each."""
    return _combined(parts, median)


def small_cut(heads: int, columns: int) -> Cut | None:
    """A small share of a layer; None for one that cannot be shared at all."""
    if heads < 2 or columns < 2:
        return None
    some = columns // SMALL_PART // SMALL_UNIT * SMALL_UNIT or max(1, columns // SMALL_PART)
    return Cut(Span(0, max(1, heads // SMALL_PART)), Span(0, some))


def quick_for_small(whole: Mapping[int, PartSeconds]) -> list[int]:
    """With which rows a small share is measured, by what they take of the whole layer."""
    most_s = SMALL_PART * SMALL_BUDGET_S
    return [rows for rows, one in whole.items() if rows <= FEW_TOKENS or one.total < most_s]


def by_clock(measured: Mapping[int, PartSeconds], spent: Spent) -> dict[int, PartSeconds]:
    """By rows, as it takes by the clock."""
    return {rows: one.by_clock(spent.stretch) for rows, one in measured.items()}


def part_curves(
    heads: int,
    columns: int,
    cut: Cut,
    whole: dict[int, PartSeconds],
    small: dict[int, PartSeconds],
    device: torch.device,
    slowdown: float,
) -> PartCurves:
    """What was measured, by row counts, of the whole layer and of the share that `cut` is, as it
    takes by the clock.

    `slowdown` is for what is too short to be stopped while it is measured.
    """
    assert cut.heads is not None, "a small share is cut"
    assert cut.columns is not None
    return PartCurves(
        whole=_share_curves(heads, columns, whole),
        small=_share_curves(len(cut.heads), len(cut.columns), _stretched(small, whole)),
        connect=_curve(whole, lambda one: one.connect),
        add_s=slowdown * _number_s(_add, device),
        fp16_s=slowdown * _number_s(_packed(Wire.FP16), device),
        int8_s=slowdown * _number_s(_packed(Wire.INT8), device),
    )


# --- curves --------------------------------------------------------------------------------------


def _share_curves(heads: int, columns: int, measured: dict[int, PartSeconds]) -> ShareCurves:
    return ShareCurves(
        heads,
        columns,
        project=_curve(measured, lambda one: one.project),
        attend=_curve(measured, lambda one: one.attend),
        close=_curve(measured, lambda one: one.close),
        mlp=_curve(measured, lambda one: one.mlp),
    )


def _curve(measured: dict[int, PartSeconds], of: Callable[[PartSeconds], float]) -> Curve:
    return Curve(tuple((rows, of(one)) for rows, one in sorted(measured.items())))


def _stretched(
    small: dict[int, PartSeconds], whole: dict[int, PartSeconds]
) -> dict[int, PartSeconds]:
    """With the row counts that were too many to measure the share with: it grows as the whole
    layer does.
    """
    most = max(small)
    base, known = whole[most], small[most]

    def stretched(one: PartSeconds) -> PartSeconds:
        return PartSeconds(
            known.project * one.project / base.project,
            known.attend * one.attend / base.attend,
            known.close * one.close / base.close,
            known.mlp * one.mlp / base.mlp,
            one.connect,
            one.wall,
        )

    return {rows: small.get(rows) or stretched(one) for rows, one in whole.items()}


def _combined(parts: Sequence[PartSeconds], how: Callable[[list[float]], float]) -> PartSeconds:
    return PartSeconds(
        project=how([one.project for one in parts]),
        attend=how([one.attend for one in parts]),
        close=how([one.close for one in parts]),
        mlp=how([one.mlp for one in parts]),
        connect=how([one.connect for one in parts]),
        wall=how([one.wall for one in parts]),
    )


# --- timing --------------------------------------------------------------------------------------


class Clock:
    """Laps of what has been computed on a torch device; each takes some time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now = time.thread_time if is_alone(device) else time.perf_counter
        synchronize(device)
        self._began_s = self._now()

    def lap(self) -> float:
        synchronize(self._device)
        now_s = self._now()
        lap_s, self._began_s = now_s - self._began_s, now_s
        return max(lap_s, LEAST_S)


def _attention(
    part: AttentionPart[Any], x: Tensor, at: Any, clock: Clock
) -> tuple[float, float, float, Tensor]:
    q, keys, values = part.project(part.opening(x), at)
    project_s = clock.lap()
    inner = part.attend(q, keys, values, at)
    attend_s = clock.lap()
    added = part.closing(inner)
    return project_s, attend_s, clock.lap(), added


def _number_s(work: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Seconds a number, the least of a few."""
    numbers = torch.randn(*NUMBERS, device=device)
    work(numbers)
    clock, laps = Clock(device), []
    for _ in range(NUMBER_REPEATS):
        work(numbers)
        laps.append(clock.lap())
    return min(laps) / numbers.numel()


def _add(numbers: Tensor) -> Tensor:
    return numbers + numbers


def _packed(wire: Wire) -> Callable[[Tensor], Tensor]:
    """To the processor's memory, which sends it, and back."""

    def to_and_fro(numbers: Tensor) -> Tensor:
        _, packed = pack(numbers, wire)
        return unpack(packed.cpu()).to(numbers.device)

    return to_and_fro
