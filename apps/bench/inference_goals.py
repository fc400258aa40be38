"""The goals of inference on several devices, from the rows of one run and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from apps.bench.home import Environment
from apps.bench.report import Goal
from apps.bench.strategies import BOUNDS, EVEN_TP, GLOO, ONE, PLANNER, WIRE, WORK
from planner.plan import Prediction, Wire

NEVER_SLOWER: Final = 0.97  # of whatever else is the fastest
PREDICTED: Final = 0.15  # of what is measured, either way
NEAR_LIMIT: Final = 1.20  # times the work alone or the wire alone, whichever takes longer
OVER_GLOO: Final = 1.9  # 4 equal devices at 125 Mbit/s
OVER_EVEN: Final = 2.6  # one device four times the other
OVER_ONE: Final[Mapping[int, float]] = {125: 2.3, 1000: 3.3}  # 4 equal devices, by Mbit/s
PREFILL_GAIN: Final = 1.6  # over one device, of what answers token by token
TOKEN_GAIN: Final = 1.25
FEW_DEVICES: Final = (2, 4)  # equal ones, that come near the limit
WIRE_ERRORS: Final[Mapping[str, float]] = {"fp32": 1e-4, "fp16": 1e-2}
LEADING_MODEL: Final = "bert-large"  # of which the figures beside others' are told


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one model in one home."""

    environment: Environment
    model: str
    seconds: Mapping[str, Sequence[float]]  # of each strategy
    errors: Mapping[str, float]  # against one device
    predicted: Prediction | None = None  # of what the planner chose
    token_seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of an answer
    alike: Mapping[str, float] = field(default_factory=dict)  # tokens of it as of one device

    def median_s(self, strategy: str) -> float | None:
        return _median(self.seconds.get(strategy))

    def median_token_s(self, strategy: str) -> float | None:
        return _median(self.token_seconds.get(strategy))

    @property
    def where(self) -> str:
        return f"{self.environment}, {self.model}"


def goals_of(all_figures: Sequence[Figures]) -> list[Goal]:
    """Those that the measured homes and models have something to say about."""
    goals = [goal for figures in all_figures for goal in _goals(figures)]
    errors = [(name, error) for figures in all_figures for name, error in figures.errors.items()]
    for wire, most in WIRE_ERRORS.items():
        found = [error for name, error in errors if wire in name and name not in BOUNDS]
        if found:
            goals.append(Goal(f"largest error, {wire} on the wire", most, max(found), False))
    return goals


def _goals(figures: Figures) -> Iterator[Goal]:
    yield from _planner(figures)
    yield from _answer(figures)
    yield from _near_limit(figures)
    home, best = figures.environment, _ours(figures)
    is_even = len(set(home.cores)) == 1
    if best is None or not figures.model.startswith(LEADING_MODEL):
        return
    if is_even and len(home.cores) == 4 and home.mbit is not None and home.mbit in OVER_ONE:
        yield from _times(figures, best, ONE, OVER_ONE[home.mbit])
        if home.mbit == min(OVER_ONE):
            yield from _times(figures, best, GLOO, OVER_GLOO)
    if len(home.cores) == 2 and home.cores[0] == 4 * home.cores[1]:
        yield from _times(figures, best, EVEN_TP, OVER_EVEN)


def _planner(figures: Figures) -> Iterator[Goal]:
    chosen = figures.median_s(PLANNER)
    if chosen is None:
        return
    rivals = [name for name in figures.seconds if name not in (PLANNER, *BOUNDS)]
    # The planner may take 8 bits only where somebody wants them, and here nobody does.
    others = [figures.median_s(name) for name in rivals if Wire.INT8 not in name]
    fastest = min((one for one in others if one is not None), default=None)
    if fastest is not None:
        text = f"{figures.where}: the planner's choice, times the fastest other"
        yield Goal(text, NEVER_SLOWER, fastest / chosen)
    if figures.predicted is not None:
        text = f"{figures.where}: prediction off by"
        off = abs(figures.predicted.prefill_s / chosen - 1)
        yield Goal(text, PREDICTED, off, at_least=False)


def _answer(figures: Figures) -> Iterator[Goal]:
    """Of a model that answers token by token, beside one device."""
    chosen, alone = figures.median_token_s(PLANNER), figures.median_token_s(ONE)
    prefill_s, alone_s = figures.median_s(PLANNER), figures.median_s(ONE)
    if chosen is None or alone is None or prefill_s is None or alone_s is None:
        return
    yield Goal(f"{figures.where}: prefill, times {ONE}", PREFILL_GAIN, alone_s / prefill_s)
    yield Goal(f"{figures.where}: a token, times {ONE}", TOKEN_GAIN, alone / chosen)
    if figures.predicted is not None:
        text = f"{figures.where}: prediction of a token off by"
        off = abs(figures.predicted.decode_s / chosen - 1)
        yield Goal(text, PREDICTED, off, at_least=False)
    if PLANNER in figures.alike:
        yield Goal(f"{figures.where}: tokens as of {ONE}", 1.0, figures.alike[PLANNER])


def _near_limit(figures: Figures) -> Iterator[Goal]:
    home, best = figures.environment, _ours(figures)
    work, wire = figures.median_s(WORK), figures.median_s(WIRE)
    is_even = len(set(home.cores)) == 1
    if best is None or work is None or wire is None:
        return
    if is_even and len(home.cores) in FEW_DEVICES and home.mbit is not None:
        text = f"{figures.where}: times the work or the wire alone"
        yield Goal(text, NEAR_LIMIT, best / max(work, wire), at_least=False)


def _times(figures: Figures, best: float, rival: str, target: float) -> Iterator[Goal]:
    theirs = figures.median_s(rival)
    if theirs is not None:
        yield Goal(f"{figures.where}: times {rival}", target, theirs / best)


def _ours(figures: Figures) -> float | None:
    """What the planner chose; without one, the fastest that the devices do together."""
    chosen = figures.median_s(PLANNER)
    if chosen is not None:
        return chosen
    rest = [figures.median_s(name) for name in figures.seconds if name not in (GLOO, *BOUNDS)]
    return min((one for one in rest if one is not None), default=None)


def _median(values: Sequence[float] | None) -> float | None:
    return median(values) if values else None
