"""The members as this device knows them now: what it hears and learns of each goes into the table,
and what changes there goes out, as events and effects, to the disk, and in a crowd to the others.

The rules of the table are those of `membership`, pure functions; this class holds its value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mesh import membership
from mesh.effects import Cut, Dial, Effect, Emit, Forget
from mesh.events import PeerForgot
from mesh.gossip import Gossip
from mesh.hearing import Hearing
from mesh.ids import Address, PeerId
from mesh.inquiries import Inquiries
from mesh.limits import SUSPECT_AFTER_S
from mesh.membership import Change, ChangeKind, Claim, Member, Membership, Record
from mesh.messages import Health, Rumour, Sighting
from mesh.peer_events import events_of
from mesh.remembered import Remembered
from mesh.swim import is_crowd, tellings

GONE = (Health.DEAD, Health.LEFT)


class Members:
    """The table, from `start` to the end of a run, and who of it has a link with this device."""

    def __init__(
        self,
        me: Member,
        disk: Remembered,
        do: Callable[[Effect], None],
        hearing: Hearing,
        inquiries: Inquiries,
        gossip: Gossip,
    ) -> None:
        self.table = Membership(me, {})
        self.linked: set[PeerId] = set()
        self.started_as = 0
        self.is_crowd = False  # there are too many for links and beats with all of them
        self.changed = False  # the others should hear of it before the next beat is due
        self.is_stale = False  # the table has changed, and what is drawn from it has not
        self.here, self.all = self.table.here, self.table.members
        self._disk = disk
        self._do = do
        self._hearing = hearing
        self._inquiries = inquiries
        self._gossip = gossip
        self._forgotten_as: dict[PeerId, int] = {}  # by whom, in which incarnation of ours

    # --- who they are ----------------------------------------------------------------------------

    @property
    def me(self) -> Member:
        return self.table.me

    @property
    def own_record(self) -> Record:
        return Record(self.table.me, self.started_as, 0.0)

    @property
    def near(self) -> list[PeerId]:
        """Those here that have a link with this device."""
        here = self.table.records
        return sorted(peer for peer in self.linked if peer in here and here[peer].member.is_here)

    def find(self, peer: PeerId) -> Record | None:
        return self.table.records.get(peer)

    def start(self, address: Address) -> None:
        """A new run: raises ConfigError if the incarnation cannot be made to last."""
        self.started_as = incarnation = self._disk.begin()
        me = replace(self.table.me, incarnation=incarnation, address=address)
        self.table = replace(self.table, me=me)
        self.is_stale = True

    def redraw(self) -> None:
        """The table changed: who is here, and whether they are a crowd."""
        self.here = self.table.here
        self.is_crowd = is_crowd(len(self.here), was_crowd=self.is_crowd)
        members = self.table.members
        if members != self.all:  # kept as they are, so that a view that is the same shows it
            self.all = members
        self.is_stale = False

    # --- what is heard of them -------------------------------------------------------------------

    def hear(self, claim: Claim, now_s: float) -> None:
        """A sign of life, from the member itself."""
        self._apply(membership.hear(self.table, claim, now_s), now_s)
        self._inquiries.heard(claim.peer, claim.incarnation, now_s)

    def hear_of(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        """A sign of life of a member that is known already."""
        record = self.table.records.get(peer)
        if record is not None:
            member = record.member
            claim = Claim(peer, member.name, incarnation, record.started_as, member.address)
            self.hear(claim, now_s)

    def learn(self, rumour: Rumour, now_s: float) -> None:
        if rumour.peer == self.table.me.peer:
            self._raise(membership.refute_rumour(self.table, rumour))
        else:
            self._apply(membership.learn(self.table, rumour, now_s), now_s)

    def take_sightings(self, sightings: tuple[Sighting, ...], teller: PeerId, now_s: float) -> bool:
        """What another says of this device; whether a sign of life is all that it needs."""
        self._note_forgotten(sightings, teller, now_s)
        raised = membership.refute(self.table, sightings)
        if raised is not None:
            self._raise(raised)
            return False
        me = self.table.me.peer
        return any(s.peer == me and s.health is Health.SUSPECT for s in sightings)

    def depart(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        self._apply(membership.depart(self.table, peer, incarnation), now_s)

    # --- what is held of them --------------------------------------------------------------------

    def suspect(self, peer: PeerId, reason: str, now_s: float) -> None:
        self._apply(membership.suspect(self.table, peer, reason), now_s)

    def accuse(self, peer: PeerId, reason: str, now_s: float) -> None:
        """This device has looked, and heard nothing: the count begins, or goes on."""
        me = self.table.me.peer
        self.suspect(peer, reason, now_s)
        record = self.table.records[peer]
        if record.member.health is Health.SUSPECT:  # by others before us, perhaps: we confirm
            incarnation = record.member.incarnation
            self._inquiries.accused.add(peer, incarnation, me, now_s, anew=True)
            self.spread(membership.rumour_of(record, me))

    def bury(self, peer: PeerId, reason: str, now_s: float) -> None:
        self._apply(membership.bury(self.table, peer, reason), now_s)

    def bury_at(self, address: Address, reason: str, now_s: float) -> None:
        """Whoever was there last."""
        for peer, record in list(self.table.records.items()):
            if record.member.address == address:
                self.bury(peer, reason, now_s)

    def listen(self, peer: PeerId, now_s: float) -> None:
        """Its silence counts from now on."""
        self._hearing.forget(peer)
        self.table = membership.listen(self.table, peer, now_s)

    def forgive(self, gap_s: float) -> None:
        """This device did not run for so long, and could hear nobody."""
        self.table = membership.forgive(self.table, gap_s)

    # --- what they are told ----------------------------------------------------------------------

    def spread(self, rumour: Rumour) -> None:
        """Something changed; the others of a crowd should know."""
        if self.is_crowd:
            self._gossip.add(rumour, tellings(len(self.here)))

    def dial(self, peer: PeerId) -> None:
        """Where it was last, if that is known."""
        record = self.table.records.get(peer)
        if record is not None and record.member.address is not None:
            self._do(Dial(peer, record.member.address))

    # --- changes ---------------------------------------------------------------------------------

    def _raise(self, incarnation: int | None) -> None:
        """Our own, to contradict what is said of us; only what is on disk counts."""
        if incarnation is not None and self._disk.raise_to(incarnation):
            self.table = replace(self.table, me=replace(self.table.me, incarnation=incarnation))
            self.is_stale = True
            self.changed = True
            self.spread(membership.rumour_of(self.own_record))

    def _note_forgotten(
        self, sightings: tuple[Sighting, ...], teller: PeerId, now_s: float
    ) -> None:
        """Whether the teller held this very process gone: once for each time that it did."""
        for sighting in sightings:
            if sighting.peer != self.table.me.peer or sighting.health not in GONE:
                continue
            if sighting.incarnation > self._forgotten_as.get(teller, self.started_as - 1):
                self._forgotten_as[teller] = sighting.incarnation
                reason = f"it held this device {sighting.health.value}"
                self._do(Emit(PeerForgot(now_s, reason, teller)))

    def _apply(self, outcome: membership.Outcome, now_s: float) -> None:
        self.table, change = outcome
        if change is None:
            return
        for event in events_of(change, now_s):
            self._do(Emit(event))
        peer = change.record.member.peer
        match change.kind:
            case ChangeKind.DIED | ChangeKind.LEFT | ChangeKind.RESTARTED:
                self._hearing.forget(peer)
                self.changed = True
                if change.kind is ChangeKind.RESTARTED:
                    self._do(Forget(peer, change.reason))
                else:
                    self.linked.discard(peer)
                    self._do(Cut(peer, change.reason))
            case ChangeKind.REFUTED:
                silence_s = now_s - change.before.heard_s if change.before else 0.0
                if silence_s >= SUSPECT_AFTER_S:  # we accused an innocent device
                    self._hearing.was_wrong(now_s)
            case ChangeKind.SUSPECTED | ChangeKind.JOINED | ChangeKind.UPDATED:
                pass
        self.is_stale = True
        self._pass_on(change)
        few = not self.is_crowd
        if few or peer in self.linked:
            self._disk.meet(change.record.member, few=few)

    def _pass_on(self, change: Change) -> None:
        """To the crowd: all but suspicions, which travel with their accusers, and what clears one
        here alone.
        """
        if change.kind is ChangeKind.SUSPECTED:
            return
        before, record = change.before, change.record
        self._inquiries.cleared(record.member.peer)
        raised = before is None or before.member.incarnation < record.member.incarnation
        if raised or change.kind is not ChangeKind.REFUTED:
            self.spread(membership.rumour_of(record))
