"""What the last beats said: which one is fresh, who accuses whom, who claims to lead.

A beat carries the sender's whole stand, so a lost one costs half a second and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.ids import PeerId
from mesh.messages import Beat, Health


@dataclass(frozen=True, slots=True)
class Beats:
    """The latest beat of each peer."""

    latest: Mapping[PeerId, Beat] = field(default_factory=dict)

    def take(self, sender: PeerId, beat: Beat) -> Beats | None:
        """With this beat added; None if it is a repetition or was overtaken by a later one."""
        last = self.latest.get(sender)
        if last is not None and _order(beat) <= _order(last):
            return None
        return Beats({**self.latest, sender: beat})

    def without(self, sender: PeerId) -> Beats:
        if sender not in self.latest:
            return self
        return Beats({peer: beat for peer, beat in self.latest.items() if peer != sender})

    def accusers(
        self,
        peer: PeerId,
        incarnation: int,
        witnesses: frozenset[PeerId],
        of: tuple[Health, ...] = (Health.SUSPECT, Health.DEAD),
    ) -> frozenset[PeerId]:
        """The witnesses that hold this incarnation of `peer` to be one `of` these."""
        return frozenset(
            witness
            for witness in witnesses
            if witness != peer and (beat := self.latest.get(witness)) is not None
            if any(
                sighting.peer == peer
                and sighting.incarnation == incarnation
                and sighting.health in of
                for sighting in beat.sightings
            )
        )


def hears_us(beat: Beat, me: PeerId) -> bool:
    """False if the sender holds us gone: a link that works one way only is no link."""
    return not any(
        sighting.peer == me and sighting.health in (Health.DEAD, Health.LEFT)
        for sighting in beat.sightings
    )


def _order(beat: Beat) -> tuple[int, int]:
    return beat.incarnation, beat.sequence
