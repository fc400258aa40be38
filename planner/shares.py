"""How much of a stage each of its devices gets: heads, columns and rows.

Galaxy's two steps (papers: INFOCOM 2024, section III-C): by speed, then what a device has no memory
for goes to those that have. What its rounding left uneven is evened out with the measured curves,
one head or a few columns at a time (papers: Asteroid's straggler offloading, phase 2 of section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from planner.counting import largest, spans, whole_numbers
from planner.memory import layer_share_bytes
from planner.part_cost import ShareCost
from planner.plan import ROW_UNITS, Capacity, Share, Span
from planner.profile import Cuttable, DeviceProfile, ModelProfile, PartCurves, Stacks
from planner.request import Request

FRACTIONS = 256  # how finely memory is looked at before heads and columns are counted
COLUMN_STEPS = 64  # so many units of columns there are at most: a finer cut gains nothing


@dataclass(frozen=True, slots=True)
class Cutting:
    """Which layers are to be shared, by whom, for what."""

    model: ModelProfile
    layers: Span
    devices: tuple[DeviceProfile, ...]  # the lead first; all know their parts
    capacity: Capacity
    request: Request
    limits: tuple[int, ...]  # bytes for the layers on each device
    kinds: tuple[tuple[int, int], ...]  # `planner.memory.alike` of the layers
    weighed: dict[tuple[int, int], int] = field(default_factory=dict, compare=False)  # by `_weigh`

    def speed(self, number: int) -> float:
        """Of one device with the whole of a layer: layers of this request a second."""
        layer = self.devices[number].layer
        return 1 / max(self.request.seconds(layer.at(self.request.prompt), layer.at(1)), 1e-12)


def cut_weights(cutting: Cutting) -> tuple[Share, ...] | None:
    """Heads and columns for each device, none of them zero; None where they do not fit.

    The rows are not cut yet.
    """
    first = cutting.model.cut_of(0)
    count = len(cutting.devices)
    if first is None or first.heads < count or first.columns < count:
        return None
    step = _column_step(first.columns, first.column_unit, count)
    parts = _fractions(cutting, first)
    heads = _cut_heads(cutting, first.heads, parts, step) if parts else None
    if parts is None or heads is None:
        return None
    columns = _cut_columns(cutting, first.columns, parts, heads, step)
    if columns is None:
        return None
    return tuple(
        Share(device.device, heads=of_heads, columns=of_columns)
        for device, of_heads, of_columns in zip(cutting.devices, spans(heads), columns, strict=True)
    )


def even_rows(shares: Sequence[Share]) -> tuple[Share, ...]:
    """The same amount for each, in their order."""
    return _with_rows(shares, [1.0] * len(shares), range(len(shares)))


def rows_by_speed(shares: Sequence[Share], cutting: Cutting) -> tuple[Share, ...]:
    """In proportion to the speed of each, in their order."""
    speeds = [cutting.speed(number) for number in range(len(shares))]
    return _with_rows(shares, speeds, range(len(shares)))


def cut_rows(cutting: Cutting) -> tuple[Share, ...]:
    """Rows alone, all devices having all weights, so that all compute for as long; the lead's come
    last. Later rows see more, which makes them longer work.
    """
    count = len(cutting.devices)
    order = [*range(1, count), 0]
    weights = [cutting.speed(number) for number in range(count)]
    shares = tuple(Share(device.device) for device in cutting.devices)
    for _ in range(6):
        rowed = _with_rows(shares, weights, order)
        busy_s = [_rows_s(cutting, number, rowed[number].rows) for number in range(count)]
        mean_s = sum(busy_s) / count
        weights = [
            weight * (mean_s / max(seconds, 1e-12)) ** 0.8
            for weight, seconds in zip(weights, busy_s, strict=True)
        ]
    return _with_rows(shares, weights, order)


# --- the two steps -------------------------------------------------------------------------------


def _fractions(cutting: Cutting, cut: Cuttable) -> list[float] | None:
    """By speed; what is too much for a device's memory goes to the others by theirs."""

    def holds(limit: int, k: int) -> bool:
        heads, columns = (max(1, n * k // FRACTIONS) for n in (cut.heads, cut.columns))
        return _weigh(cutting, heads, columns) <= limit

    count = len(cutting.devices)
    caps = [largest(FRACTIONS, partial(holds, limit)) / FRACTIONS for limit in cutting.limits]
    if sum(caps) < 1 - count / FRACTIONS:
        return None
    fractions, free, left = [0.0] * count, list(range(count)), 1.0
    while free:
        speed = sum(cutting.speed(n) for n in free)
        over = [n for n in free if left * cutting.speed(n) / speed > caps[n]]
        if not over:
            for n in free:
                fractions[n] = left * cutting.speed(n) / speed
            break
        for n in over:
            fractions[n] = caps[n]
            left = max(0.0, left - caps[n])
            free.remove(n)
    return fractions


def _cut_heads(cutting: Cutting, total: int, parts: Sequence[float], step: int) -> list[int] | None:
    """So many that the fewest columns have room beside them, and attention takes as long on all."""

    def holds(limit: int, heads: int) -> bool:
        return _weigh(cutting, heads, step) <= limit

    most = [largest(total, partial(holds, limit)) for limit in cutting.limits]
    heads = whole_numbers(total, parts, most)
    return heads and _evened(heads, most, partial(_attention_s, cutting))


def _cut_columns(
    cutting: Cutting, total: int, parts: Sequence[float], heads: Sequence[int], step: int
) -> list[Span] | None:
    """So many that they have room beside the heads, and the MLP takes as long on all."""

    def holds(number: int, steps: int) -> bool:
        columns = min(steps * step, total)
        return _weigh(cutting, heads[number], columns) <= cutting.limits[number]

    units = -(-total // step)
    most = [largest(units, partial(holds, number)) for number in range(len(heads))]
    counts = whole_numbers(units, parts, most)
    if counts is None:
        return None
    counts = _evened(counts, most, lambda number, steps: _mlp_s(cutting, number, steps * step))
    return [Span(one.first * step, min(one.last * step, total)) for one in spans(counts)]


def _evened(
    counts: list[int], most: Sequence[int], seconds: Callable[[int, int], float]
) -> list[int]:
    """Moves one at a time from the slowest to whoever is done soonest with it, while that helps."""
    counts = list(counts)
    busy_s = [seconds(n, count) for n, count in enumerate(counts)]
    for _ in range(sum(counts)):
        slowest = max(range(len(counts)), key=lambda n: (busy_s[n], -n))
        if counts[slowest] == 1:
            break
        able = [n for n in range(len(counts)) if n != slowest and counts[n] < most[n]]
        if not able:
            break
        more_s = {n: seconds(n, counts[n] + 1) for n in able}
        best = min(able, key=lambda n: (more_s[n], n))
        if more_s[best] >= busy_s[slowest]:
            break
        counts[slowest] -= 1
        counts[best] += 1
        busy_s[slowest] = seconds(slowest, counts[slowest])
        busy_s[best] = more_s[best]
    return counts


def _attention_s(cutting: Cutting, number: int, heads: int) -> float:
    cost = ShareCost(_parts(cutting, number), heads, 1)
    prompt = cutting.request.prompt
    return cutting.request.seconds(cost.attention_s(prompt), cost.attention_s(1))


def _mlp_s(cutting: Cutting, number: int, columns: int) -> float:
    cost = ShareCost(_parts(cutting, number), 1, columns)
    prompt = cutting.request.prompt
    return cutting.request.seconds(cost.mlp_s(prompt), cost.mlp_s(1))


def _rows_s(cutting: Cutting, number: int, rows: Span | None) -> float:
    """One layer with some of the prompt's rows."""
    assert rows is not None, "rows were cut"
    parts, prompt = _parts(cutting, number), cutting.request.prompt
    first, last = (prompt * edge // ROW_UNITS for edge in (rows.first, rows.last))
    cost = ShareCost(parts, parts.whole.heads, parts.whole.columns)
    count = max(1, last - first)
    seen = prompt if cutting.model.stacks is Stacks.ENCODER else 0
    attend_s = cost.attend_s(first, count, sees_all_of=seen)
    straight_s = cost.project_s(count) + cost.close_s(count) + cost.mlp_s(count)
    return attend_s + straight_s + cost.connect_s(count)


def _parts(cutting: Cutting, number: int) -> PartCurves:
    parts = cutting.devices[number].parts
    assert parts is not None, "only devices that know their parts share layers"
    return parts


# --- counting ------------------------------------------------------------------------------------


def _weigh(cutting: Cutting, heads: int, columns: int) -> int:
    """At most what a share with so many takes, wherever its spans lie: they may cut through a group
    of heads and through units at both ends.
    """
    if (heads, columns) in cutting.weighed:
        return cutting.weighed[heads, columns]
    first = cutting.model.cut_of(0)
    assert first is not None
    begin = min(1, first.heads - heads)
    aside = min(1, first.columns - columns)
    share = Share(
        cutting.devices[0].device,
        heads=Span(begin, begin + heads),
        columns=Span(aside, aside + columns),
    )
    size_bytes = sum(
        count * layer_share_bytes(cutting.model, index, share, cutting.capacity)
        for index, count in cutting.kinds
    )
    cutting.weighed[heads, columns] = size_bytes
    return size_bytes


def _column_step(columns: int, unit: int, count: int) -> int:
    """Columns that are moved together: whole units, as far as there are enough of them."""
    step = unit * max(1, -(-columns // (unit * COLUMN_STEPS)))
    return step if columns // step >= 4 * count else max(1, min(unit, columns // (4 * count)))


def _with_rows(
    shares: Sequence[Share], weights: Sequence[float], order: Sequence[int]
) -> tuple[Share, ...]:
    """With rows in proportion to the weights, one behind the other in this order."""
    most = [ROW_UNITS] * len(shares)
    counts = whole_numbers(ROW_UNITS, [weights[n] for n in order], most)
    assert counts is not None, "there are more units of rows than devices"
    where = dict(zip(order, spans(counts), strict=True))
    return tuple(
        Share(share.device, share.heads, share.columns, share.vocab, where[n], share.samples)
        for n, share in enumerate(shares)
    )
