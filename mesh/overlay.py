"""Who holds links with whom in a crowd: some neighbours by chance, and the electors each other."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable

from mesh.ids import PeerId
from mesh.limits import ELECTORS, NEIGHBOURS


def electors(here: Collection[PeerId], leaders: Iterable[PeerId]) -> frozenset[PeerId]:
    """Who elects: the same few in every device's view, and whoever leads now."""
    return frozenset(heapq.nsmallest(ELECTORS, here)) | (frozenset(leaders) & frozenset(here))


def neighbours(
    before: frozenset[PeerId], others: frozenset[PeerId], chance: Callable[[], float], *, swap: bool
) -> frozenset[PeerId]:
    """NEIGHBOURS of the `others` that are here; of those before, all that still are, but one for
    another where `swap`.
    """
    kept = sorted(before & others)
    if swap and len(kept) == NEIGHBOURS:
        del kept[int(chance() * len(kept))]
    free = sorted(others - before)
    while len(kept) < NEIGHBOURS and free:
        kept.append(free.pop(int(chance() * len(free))))
    return frozenset(kept)


def some(of: Collection[PeerId], count: int, chance: Callable[[], float]) -> list[PeerId]:
    """At most `count` of them, by chance."""
    left = list(of)
    return [left.pop(int(chance() * len(left))) for _ in range(min(count, len(left)))]
