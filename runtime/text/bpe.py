"""Byte-pair merging: the pair of the lowest rank first, the leftmost of equals, until none is left.

In Python on purpose. The usual library needs 0.8 to 2 s to take in a vocabulary of 262,144 tokens,
holds the interpreter lock all that time (so no heartbeat leaves), and 200 MB afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

Rank = Callable[[str, str], float | None]  # None: this pair is never merged


def merge(symbols: list[str], rank: Rank) -> list[str]:
    """The symbols after all merges; O(n log n), for some languages write without spaces."""
    count = len(symbols)
    if count < 2:
        return symbols
    parts: list[str | None] = list(symbols)  # None: merged into the part on its left
    following = [*range(1, count), count]
    previous = [*range(-1, count - 1)]
    queue = [
        (found, left, symbols[left], symbols[left + 1])
        for left in range(count - 1)
        if (found := rank(symbols[left], symbols[left + 1])) is not None
    ]
    heapify(queue)
    while queue:
        _, left, first, second = heappop(queue)
        right = following[left]
        if parts[left] != first or right == count or parts[right] != second:
            continue  # one of the two has been merged with another meanwhile
        merged = first + second
        parts[left], parts[right] = merged, None
        after = following[left] = following[right]
        if after < count:
            previous[after] = left
            _offer(queue, rank, left, merged, parts[after])
        if (before := previous[left]) >= 0:
            _offer(queue, rank, before, parts[before], merged)
    return [part for part in parts if part is not None]


def _offer(
    queue: list[tuple[float, int, str, str]],
    rank: Rank,
    left: int,
    first: str | None,
    second: str | None,
) -> None:
    assert first is not None
    assert second is not None
    if (found := rank(first, second)) is not None:
        heappush(queue, (found, left, first, second))
