"""What this device of a crowd tells on: rumours of members, and the epoch it follows, to a few by
chance, again and again until they were told often enough. No clock: times are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from mesh.effects import Effect, Tell
from mesh.ids import Epoch, PeerId
from mesh.limits import GOSSIP_FANOUT, GOSSIP_PAUSE_S, MAX_RUMOURS
from mesh.messages import News, Rumour
from mesh.overlay import some
from mesh.rumours import Rumours


class Gossip:
    """`chance` is 0..1, anew with each call; `epoch` is what the others should hear of ours."""

    def __init__(
        self,
        do: Callable[[Effect], None],
        chance: Callable[[], float],
        epoch: Callable[[], Epoch | None],
    ) -> None:
        self._do = do
        self._chance = chance
        self._epoch = epoch
        self._rumours = Rumours()
        self._epoch_tellings = 0
        self._is_fresh = False  # something is to be told that nobody was told yet
        self._told_s = -GOSSIP_PAUSE_S

    def add(self, rumour: Rumour, times: int) -> None:
        self._rumours.add(rumour, times)
        self._is_fresh = True

    def epoch_changed(self, times: int) -> None:
        """Everybody should hear of it, so it is told so often even if nothing else is."""
        self._epoch_tellings = times
        self._is_fresh = True

    def news(self) -> News:
        """What travels with a ping or its answer."""
        return News(self._rumours.take(MAX_RUMOURS // 4), self._epoch())

    def is_due(self, now_s: float) -> bool:
        """News goes out at once, and again with every tick until it was told often enough. In a
        storm of news what comes meanwhile waits, to travel together.
        """
        return self._is_fresh and now_s - self._told_s >= GOSSIP_PAUSE_S

    def tell(self, near: Collection[PeerId], now_s: float) -> None:
        """A few of those that have a link with us hear what there is."""
        self._is_fresh, self._told_s = False, now_s
        for peer in some(near, GOSSIP_FANOUT, self._chance):
            if self._rumours or self._epoch_tellings > 0:
                self._epoch_tellings -= 1
                self._do(Tell(peer, News(self._rumours.take(MAX_RUMOURS), self._epoch())))
