"""With whom this device exchanges beats: with everybody, where there are few; of a crowd, the
electors with each other, so that among them all is as in a small home.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.ids import PeerId
from mesh.limits import DEAD_ALONE_S
from mesh.overlay import electors


class Circle:
    """Changes with the view, and with whoever beats us though we count it out."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._asking: dict[PeerId, float] = {}  # who expects beats of us, and until when
        self.members = frozenset((me,))  # whose silence this device judges, itself included
        self.is_hearsay = False  # of a crowd, and no elector: it follows whom the others follow

    def draw(self, here: frozenset[PeerId], leaders: Iterable[PeerId], *, crowd: bool) -> None:
        """Anew, for this view."""
        chosen = electors(here, leaders) if crowd else here
        self.is_hearsay = self._me not in chosen
        self.members = frozenset((self._me,)) if self.is_hearsay else chosen

    def asked(self, peer: PeerId, now_s: float) -> None:
        """A beat came that expects some back."""
        if peer not in self.members:
            self._asking[peer] = now_s + DEAD_ALONE_S

    def asking(self, now_s: float) -> frozenset[PeerId]:
        """Who is beaten beside the members, for as long as they ask for it."""
        self._asking = {
            peer: until_s
            for peer, until_s in self._asking.items()
            if until_s > now_s and peer not in self.members
        }
        return frozenset(self._asking)
