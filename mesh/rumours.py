"""What this device still has to pass on: the news of members, each told a number of times."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from mesh.ids import PeerId
from mesh.limits import MAX_WAITING_RUMOURS
from mesh.messages import Health, Rumour


@dataclass(slots=True)
class _Waiting:
    rumour: Rumour
    left: int  # times to be told


class Rumours:
    """Of each member the newest alone, but its accusations by different accusers side by side."""

    def __init__(self) -> None:
        # (member, accuser or None), the next to be told first
        self._waiting: OrderedDict[tuple[PeerId, PeerId | None], _Waiting] = OrderedDict()
        self._accusers: dict[PeerId, set[PeerId]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, rumour: Rumour, times: int) -> None:
        """The next to be told; takes the place of what it contradicts."""
        peer, accuser = rumour.peer, None
        if rumour.health is Health.SUSPECT and rumour.by is not None:
            accuser = rumour.by
            self._accusers.setdefault(peer, set()).add(accuser)
        else:
            for before in self._accusers.pop(peer, ()):
                self._waiting.pop((peer, before), None)
        self._waiting[peer, accuser] = _Waiting(rumour, times)
        self._waiting.move_to_end((peer, accuser), last=False)
        if len(self._waiting) > MAX_WAITING_RUMOURS:
            self._waiting.popitem()

    def take(self, most: int) -> tuple[Rumour, ...]:
        """At most so many, to be told once more; each goes to the end of the line."""
        chosen = []
        for _ in range(min(most, len(self._waiting))):
            key, waiting = self._waiting.popitem(last=False)
            chosen.append(waiting.rumour)
            waiting.left -= 1
            if waiting.left > 0:
                self._waiting[key] = waiting
        return tuple(chosen)
