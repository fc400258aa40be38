"""What this device of a crowd is looking into: whom it asked and has no answer of, for whom others
asked it to look, who is accused. No clock: times are handed in.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.accusations import Accusations
from mesh.effects import Effect, Tell
from mesh.ids import PeerId
from mesh.messages import Found
from mesh.swim import Probe


class Inquiries:
    """All of one member end when it speaks, or is gone."""

    def __init__(self, do: Callable[[Effect], None]) -> None:
        self.probes: dict[PeerId, Probe] = {}
        self.accused = Accusations()
        self._do = do
        self._sought: dict[PeerId, dict[PeerId, float]] = {}  # by whom, until when

    def seek(self, sought: PeerId, asker: PeerId, until_s: float) -> None:
        """`asker` wants to know of a sign of life of `sought`, until then."""
        self._sought.setdefault(sought, {})[asker] = until_s

    def heard(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        """A sign of life: for those too who asked us to look."""
        for asker, until_s in self._sought.pop(peer, {}).items():
            if now_s <= until_s:
                self._do(Tell(asker, Found(peer, incarnation)))

    def cleared(self, peer: PeerId) -> None:
        """It spoke again, or is gone: a later accusation starts anew."""
        self.probes.pop(peer, None)
        self.accused.clear(peer)

    def slept(self) -> None:
        """We did not run: nobody is to blame for what we did not hear."""
        self.probes.clear()
        self.accused.clear_all()
