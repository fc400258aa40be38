"""Refilling: which layers compute which rows again, so that a conversation goes on under a plan.

After a loss or a move some stages have their caches and some do not. What a layer lacks is fetched
from the device that had the layer before, if that is still there; else it is computed from the log
of the device with the layer in front of it (`runtime.logs`), or from the owner's tokens; the layers
that have it do nothing. Pure: what the stages say goes in, what is to be done comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mesh.errors import ProtocolError
from mesh.ids import PeerId
from planner.plan import Plan, Span

MAX_LAYERS: Final = 1024  # of one stage in an answer; the deepest models have some 130


@dataclass(frozen=True, slots=True)
class Held:
    """What a stage has of a conversation: how many tokens each of its layers has, how far all of
    them can go back, and which rows it can give layer `log_layer` again.
    """

    layers: tuple[int, ...] = ()
    least: int = 0
    log_layer: int = 0
    log_first: int = 0
    log_end: int = 0

    def __post_init__(self) -> None:
        numbers = (*self.layers, self.least, self.log_layer, self.log_first, self.log_end)
        if len(self.layers) > MAX_LAYERS or min(numbers) < 0:
            raise ProtocolError(
                f"a stage tells of at most {MAX_LAYERS} layers, in numbers that are not negative"
            )

    @property
    def tokens(self) -> int:
        """How many tokens all layers have."""
        return min(self.layers, default=0)


@dataclass(frozen=True, slots=True)
class Run:
    """Layers that compute the rows from `start` on again; the rest of the model does not."""

    layers: Span
    start: int


@dataclass(frozen=True, slots=True)
class Refill:
    """The runs, after which every layer has `until` tokens; what comes then goes through all."""

    until: int
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """Layers of a stage whose caches the `giver` had under the former plan."""

    stage: int
    layers: Span
    giver: PeerId


def moves(plan: Plan, held: Sequence[Held], former: Plan, total: int) -> tuple[Move, ...]:
    """What can be fetched of what is lacking, of `total` tokens that all layers had under the
    former plan: that is cheaper than to compute it. Stages of several devices keep what they have.
    """
    found: list[Move] = []
    for index, (one, stage) in enumerate(zip(held, plan.stages, strict=True)):
        if len(stage.shares) > 1 or len(one.layers) != len(stage.layers):
            continue
        for layer, tokens in enumerate(one.layers, stage.layers.first):
            before = former.stages[stage_with(former, layer)]
            if tokens >= total or len(before.shares) > 1 or before.lead == stage.lead:
                continue
            first = layer
            if found and found[-1] == Move(index, Span(found[-1].layers.first, layer), before.lead):
                first = found.pop().layers.first
            found.append(Move(index, Span(first, layer + 1), before.lead))
    return tuple(found)


def in_common(held: Sequence[Held]) -> Held:
    """What the devices of one stage have together. Where there are several, nothing is computed
    again by some of them alone: the least counts, and no log.
    """
    if len(held) == 1:
        return held[0]
    tokens = min((one.tokens for one in held), default=0)
    layers = max((len(one.layers) for one in held), default=0)
    return Held((tokens,) * layers, max((one.least for one in held), default=0))


def refill(plan: Plan, held: Sequence[Held], total: int) -> Refill:
    """The cheapest way to `total` tokens everywhere, of which `held` tells what each stage has.

    The rest, from `until` on, goes through all layers as ever.
    """
    if any(len(one.layers) != len(s.layers) for one, s in zip(held, plan.stages, strict=True)):
        return Refill(0)
    has = [tokens for one in held for tokens in one.layers]
    best, best_cost = Refill(0), total * len(has)
    for until in sorted({min(tokens, total) for tokens in has} - {0}):
        runs = [_run(layers, has, until) for layers in _lacking(has, until)]
        if not _goes_back(held, until) or not all(_is_fed(run, plan, held, until) for run in runs):
            continue
        again = sum(len(run.layers) * (until - run.start) for run in runs)
        cost = again + (total - until) * len(has)
        if cost < best_cost:
            best, best_cost = Refill(until, tuple(runs)), cost
    return best


def _lacking(has: Sequence[int], until: int) -> list[Span]:
    """The runs of neighbouring layers that have fewer than `until` tokens."""
    spans: list[Span] = []
    for index, tokens in enumerate(has):
        if tokens >= until:
            continue
        if spans and spans[-1].last == index:
            spans[-1] = Span(spans[-1].first, index + 1)
        else:
            spans.append(Span(index, index + 1))
    return spans


def _run(layers: Span, has: Sequence[int], until: int) -> Run:
    """Where its layers have come equally far they go on from there."""
    starts = {has[index] for index in range(layers.first, layers.last)}
    return Run(layers, starts.pop() if len(starts) == 1 else 0)


def _goes_back(held: Sequence[Held], until: int) -> bool:
    """Whether the layers that have come further can forget what is behind `until`."""
    return all(until >= one.least or max(one.layers, default=0) <= until for one in held)


def _is_fed(run: Run, plan: Plan, held: Sequence[Held], until: int) -> bool:
    """Whether somebody has the rows that go in, and each stage on the way is one device's."""
    first, last = run.layers.first, run.layers.last
    for stage in plan.stages:
        is_on_the_way = stage.layers.first < last and first < stage.layers.last
        if is_on_the_way and len(stage.shares) > 1:
            return False
    if first == 0:
        return True  # the owner has the tokens
    giver = held[stage_with(plan, first - 1)]
    return giver.log_layer == first and giver.log_first <= run.start and until <= giver.log_end


def stage_with(plan: Plan, layer: int) -> int:
    """The number of the stage that has a layer."""
    return next(index for index, stage in enumerate(plan.stages) if layer in stage.layers)
