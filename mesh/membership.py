"""Who is here: the view that others read, and the table of members it is made from.

Every transition is a function of the table that returns the new table and what changed, in words.
The rules: a higher incarnation outranks everything; DEAD and LEFT are final for an incarnation;
a sign of life clears a suspicion. No clock, no network, no chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from mesh.ids import Address, Epoch, PeerId
from mesh.limits import MAX_INCARNATION, MAX_MEMBERS, MAX_SIGHTINGS
from mesh.messages import Health, Rumour, Sighting


@dataclass(frozen=True, slots=True)
class Member:
    peer: PeerId
    name: str
    incarnation: int
    health: Health
    address: Address | None

    @property
    def is_here(self) -> bool:
        """A suspect is still here; only the dead and those who left are gone."""
        return self.health in (Health.ALIVE, Health.SUSPECT)


@dataclass(frozen=True, slots=True)
class View:
    """Who is here now, as this device sees it; a new value with each change."""

    me: PeerId
    members: tuple[Member, ...]  # ordered by peer, this device included, the gone ones too
    epoch: Epoch | None  # the last one this device accepted: the fencing number
    leader: PeerId | None  # who leads in `epoch`, while it is here
    version: int
    degraded: frozenset[PeerId] = frozenset()  # alive, but their work does not get on

    def changes(self, before: View) -> bool:
        """Whether another leads, or others are degraded; the members are not looked at."""
        now, then = (self.epoch, self.leader), (before.epoch, before.leader)
        return now != then or self.degraded != before.degraded

    @property
    def alive(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.is_here)

    @property
    def leads(self) -> bool:
        return self.leader == self.me

    def find(self, peer: PeerId) -> Member | None:
        return next((member for member in self.members if member.peer == peer), None)

    def is_here(self, peer: PeerId) -> bool:
        member = self.find(peer)
        return member is not None and member.is_here


@dataclass(frozen=True, slots=True)
class Claim:
    """What a peer says of itself, in Hello or Beat."""

    peer: PeerId
    name: str
    incarnation: int
    started_as: int
    address: Address | None


@dataclass(frozen=True, slots=True)
class Record:
    member: Member
    started_as: int  # the incarnation its process began with
    heard_s: float  # loop time of its last sign of life


class ChangeKind(StrEnum):
    JOINED = "joined"
    RESTARTED = "restarted"
    SUSPECTED = "suspected"
    REFUTED = "refuted"
    DIED = "died"
    LEFT = "left"
    UPDATED = "updated"


@dataclass(frozen=True, slots=True)
class Change:
    kind: ChangeKind
    before: Record | None
    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class Membership:
    """This device and everybody it has met."""

    me: Member
    records: Mapping[PeerId, Record]

    @property
    def here(self) -> frozenset[PeerId]:
        """Everybody who counts in an election, this device included."""
        others = (peer for peer, record in self.records.items() if record.member.is_here)
        return frozenset((self.me.peer, *others))

    @property
    def members(self) -> tuple[Member, ...]:
        others = (record.member for record in self.records.values())
        return tuple(sorted((self.me, *others), key=lambda member: member.peer))

    def sightings(self, of: Collection[PeerId] | None = None) -> tuple[Sighting, ...]:
        """What the others are told, of these or of all; of the gone only the newest, so that a
        beat stays small.
        """
        chosen = (r for peer, r in self.records.items() if of is None or peer in of)
        told = sorted(chosen, key=lambda r: (not r.member.is_here, -r.heard_s))
        members = (record.member for record in told[:MAX_SIGHTINGS])
        return tuple(
            Sighting(member.peer, member.name, member.incarnation, member.health, member.address)
            for member in members
        )


Outcome = tuple[Membership, Change | None]


def hear(table: Membership, claim: Claim, now_s: float) -> Outcome:
    """A sign of life. It brings nobody back who is gone, unless with a higher incarnation."""
    before = table.records.get(claim.peer)
    if before is None:
        return _changed(table, None, _alive(claim, now_s), ChangeKind.JOINED, "met")
    known = before.member
    if claim.incarnation < known.incarnation:
        return table, None
    after = _alive(claim, now_s)
    if not known.is_here:
        if claim.incarnation == known.incarnation:
            return table, None
        reason = f"back as incarnation {claim.incarnation}, was {known.health}"
        return _changed(table, before, after, ChangeKind.JOINED, reason)
    if claim.started_as != before.started_as:
        reason = f"its process restarted as incarnation {claim.incarnation}"
        return _changed(table, before, after, ChangeKind.RESTARTED, reason)
    if known.health is Health.SUSPECT:
        return _changed(table, before, after, ChangeKind.REFUTED, "it spoke again")
    if after.member != known:
        return _changed(table, before, after, ChangeKind.UPDATED, "it told something new of itself")
    return _put(table, after), None


def suspect(table: Membership, peer: PeerId, reason: str) -> Outcome:
    before = table.records.get(peer)
    if before is None or before.member.health is not Health.ALIVE:
        return table, None
    return _changed(table, before, _with(before, Health.SUSPECT), ChangeKind.SUSPECTED, reason)


def bury(table: Membership, peer: PeerId, reason: str) -> Outcome:
    before = table.records.get(peer)
    if before is None or not before.member.is_here:
        return table, None
    return _changed(table, before, _with(before, Health.DEAD), ChangeKind.DIED, reason)


def depart(table: Membership, peer: PeerId, incarnation: int) -> Outcome:
    """The peer said goodbye; nothing of an older incarnation may undo or repeat it."""
    before = table.records.get(peer)
    if before is None or not before.member.is_here or incarnation < before.member.incarnation:
        return table, None
    after = _with(before, Health.LEFT)
    after = replace(after, member=replace(after.member, incarnation=incarnation))
    return _changed(table, before, after, ChangeKind.LEFT, "it said goodbye")


def refute(table: Membership, sightings: tuple[Sighting, ...]) -> int | None:
    """The incarnation to raise ourselves to, where others hold us gone or know a later one."""
    me = table.me
    for sighting in sightings:
        if sighting.peer != me.peer or sighting.incarnation > MAX_INCARNATION:
            continue
        gone = sighting.health in (Health.DEAD, Health.LEFT)
        if sighting.incarnation > me.incarnation or (
            gone and sighting.incarnation == me.incarnation
        ):
            return sighting.incarnation + 1
    return None


def refute_rumour(table: Membership, rumour: Rumour) -> int | None:
    """The same in a crowd, where a sign of life does not reach all: it refutes a suspicion too."""
    me = table.me
    if rumour.peer != me.peer or not me.incarnation <= rumour.incarnation <= MAX_INCARNATION:
        return None
    alive_as_known = rumour.health is Health.ALIVE and rumour.incarnation == me.incarnation
    return None if alive_as_known else rumour.incarnation + 1


def learn(table: Membership, rumour: Rumour, now_s: float) -> Outcome:
    """What one device says of another, which is not this one. Of the gone, only whom we knew."""
    before = table.records.get(rumour.peer)
    if rumour.health is Health.ALIVE:
        is_news = before is None or rumour.incarnation > before.member.incarnation
        return hear(table, _claim(rumour), now_s) if is_news else (table, None)
    if before is None:
        return table, None
    if not before.member.is_here or rumour.incarnation < before.member.incarnation:
        return table, None
    if rumour.health is Health.LEFT:
        return depart(table, rumour.peer, rumour.incarnation)
    told = replace(before, member=replace(before.member, incarnation=rumour.incarnation))
    if rumour.health is Health.DEAD:
        return bury(_put(table, told), rumour.peer, "others hold it dead")
    by = rumour.by.short if rumour.by is not None else "others"
    return suspect(_put(table, told), rumour.peer, f"accused by {by}")


def rumour_of(record: Record, by: PeerId | None = None) -> Rumour:
    """What this device says of a member; `by` accuses it. A suspect that nobody is said to accuse
    is told of as alive.
    """
    member = record.member
    health = Health.ALIVE if member.health is Health.SUSPECT and by is None else member.health
    return Rumour(
        member.peer,
        member.name,
        member.incarnation,
        record.started_as,
        health,
        member.address,
        by,
    )


def listen(table: Membership, peer: PeerId, now_s: float) -> Membership:
    """From now on this device should hear of `peer` regularly."""
    record = table.records.get(peer)
    return table if record is None else _put(table, replace(record, heard_s=now_s))


def forgive(table: Membership, gap_s: float) -> Membership:
    """Takes time in which we did not run off everybody's silence."""
    records = {
        peer: replace(record, heard_s=record.heard_s + gap_s)
        for peer, record in table.records.items()
    }
    return replace(table, records=records)


def _claim(rumour: Rumour) -> Claim:
    return Claim(rumour.peer, rumour.name, rumour.incarnation, rumour.started_as, rumour.address)


def _alive(claim: Claim, now_s: float) -> Record:
    member = Member(claim.peer, claim.name, claim.incarnation, Health.ALIVE, claim.address)
    return Record(member, claim.started_as, now_s)


def _with(record: Record, health: Health) -> Record:
    return replace(record, member=replace(record.member, health=health))


def _put(table: Membership, record: Record) -> Membership:
    records = {**table.records, record.member.peer: record}
    if len(records) > 2 * MAX_MEMBERS:  # the longest gone are forgotten; the living are few
        gone = [r for r in records.values() if not r.member.is_here]
        oldest = min(gone, key=lambda r: r.heard_s)
        del records[oldest.member.peer]
    return replace(table, records=records)


def _changed(
    table: Membership, before: Record | None, after: Record, kind: ChangeKind, reason: str
) -> Outcome:
    return _put(table, after), Change(kind, before, after, reason)
