"""Who of a crowd is accused of being gone, since when, and by how many. No clock: times are handed
in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from mesh.ids import PeerId


@dataclass(slots=True)
class Accusation:
    """Of one incarnation of a member. One that was cleared waits for a new accuser, for ever."""

    incarnation: int
    since_s: float
    by: set[PeerId] = field(default_factory=set)  # since it was cleared last
    seen: set[PeerId] = field(default_factory=set)  # whose accusations are no news any more


class Accusations:
    """At most one a member."""

    def __init__(self) -> None:
        self._known: dict[PeerId, Accusation] = {}

    def __iter__(self) -> Iterator[tuple[PeerId, Accusation]]:
        return iter(list(self._known.items()))

    def add(
        self, peer: PeerId, incarnation: int, by: PeerId, now_s: float, *, anew: bool = False
    ) -> bool:
        """Whether it is news. `anew`: the accuser has looked again, so it counts at any rate."""
        known = self._known.get(peer)
        if known is None or known.incarnation < incarnation:
            known = self._known[peer] = Accusation(incarnation, now_s)
        elif known.incarnation > incarnation or (by in known.seen and not anew):
            return False
        if known.since_s == inf:
            known.since_s = now_s
        known.by.add(by)
        known.seen.add(by)
        return True

    def clear(self, peer: PeerId) -> None:
        """It spoke again: a later accusation waits its full time."""
        known = self._known.get(peer)
        if known is not None:
            known.since_s = inf
            known.by.clear()

    def clear_all(self) -> None:
        for peer in self._known:
            self.clear(peer)

    def drop(self, peer: PeerId) -> None:
        del self._known[peer]
