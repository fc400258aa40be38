"""What this device hears of the others: their last beats, how far it trusts its own ears, and what
somebody's silence means to it. No clock: times are handed in.
"""

from __future__ import annotations

from dataclasses import replace

from mesh import suspicion
from mesh.heartbeat import Beats
from mesh.ids import PeerId
from mesh.limits import DEAD_CONFIRMED_S
from mesh.membership import Record
from mesh.messages import Health, Lead
from mesh.suspicion import LocalHealth, Verdict


class Hearing:
    """Changes with each beat, and with whatever gives reason to doubt ourselves."""

    def __init__(self) -> None:
        self.beats = Beats()
        self.local = LocalHealth()

    def check_self(self, late_s: float, now_s: float) -> bool:
        """Our own tick came `late_s` after its time: whether to judge anybody."""
        self.local, judging = suspicion.check_self(self.local, late_s, now_s)
        return judging

    def was_wrong(self, now_s: float) -> None:
        """Somebody whose silence we blamed turned out to live."""
        self.local = suspicion.worsen(self.local, now_s)

    @property
    def stuck(self) -> frozenset[PeerId]:
        """Whose work does not get on, as they say themselves."""
        return frozenset(peer for peer, beat in self.beats.latest.items() if beat.stuck)

    def take_lead(self, lead: Lead) -> bool:
        """The winner's word, as if its beat had said it; whether it is news."""
        latest, leader = self.beats.latest, lead.epoch.leader
        beat = latest.get(leader)
        if beat is None or (beat.epoch is not None and lead.epoch <= beat.epoch):
            return False
        says = replace(beat, epoch=lead.epoch, leads=True, has_leader=True)
        self.beats = Beats({**latest, leader: says})
        return True

    def forget(self, peer: PeerId) -> None:
        """Its process is gone, or its silence counts from now on."""
        self.beats = self.beats.without(peer)

    def forget_all(self) -> None:
        self.beats = Beats()

    def judge(self, record: Record, others: frozenset[PeerId], now_s: float) -> Verdict:
        """Of a member that is here; `others` are those who would hear it too, this device among
        them.
        """
        member = record.member
        silence_s = now_s - record.heard_s
        confirmed_by: frozenset[PeerId] = frozenset()
        most_hold_it_dead = False
        if silence_s >= DEAD_CONFIRMED_S:
            peer, incarnation = member.peer, member.incarnation
            confirmed_by = self.beats.accusers(peer, incarnation, others)
            sure = self.beats.accusers(peer, incarnation, others, of=(Health.DEAD,))
            most_hold_it_dead = 2 * len(sure) > len(others) - 1  # this device is no witness
        return suspicion.judge(
            member.health,
            silence_s,
            confirmed_by,
            self.local,
            most_hold_it_dead=most_hold_it_dead,
        )
