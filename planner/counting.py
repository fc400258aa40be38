"""Whole things in proportion: heads, columns, layers, rows of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from planner.plan import Span


def whole_numbers(total: int, weights: Sequence[float], most: Sequence[int]) -> list[int] | None:
    """Whole numbers that add up to `total`, in proportion to the weights, each at least 1 and at
    most what it may be; None where there are none. The largest remainder gets the rest.
    """
    if min(most) < 1 or sum(most) < total or len(weights) > total:
        return None
    scale = total / max(sum(weights), 1e-300)
    exact = [
        min(max(weight * scale, 1.0), float(cap)) for weight, cap in zip(weights, most, strict=True)
    ]
    counts = [int(one) for one in exact]
    indexes = range(len(counts))
    while (left := total - sum(counts)) != 0:
        if left > 0:
            open_to = [n for n in indexes if counts[n] < most[n]]
            best = max(open_to, key=lambda n: (exact[n] - counts[n], -n))
        else:
            open_to = [n for n in indexes if counts[n] > 1]
            best = min(open_to, key=lambda n: (exact[n] - counts[n], n))
        amount = _amount(left, best, counts, most, exact)
        counts[best] += amount
    return counts


def spans(counts: Sequence[int]) -> list[Span]:
    """One behind the other, from 0."""
    ends = list(accumulate(counts))
    return [Span(end - count, end) for end, count in zip(ends, counts, strict=True)]


def largest(total: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `total` that holds, when all smaller ones do; 0: none."""
    low, high = 0, total
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _amount(
    left: int, chosen: int, counts: Sequence[int], most: Sequence[int], exact: Sequence[float]
) -> int:
    """One, or more at once where a large number has to be moved."""
    if abs(left) <= len(counts):
        return 1 if left > 0 else -1
    if left > 0:
        return min(-(-left // len(counts)), most[chosen] - counts[chosen])
    return -min(-(left // len(counts)), counts[chosen] - 1)
