"""All that a node knows of the mesh, without a clock, a network or a task: inputs in, effects out.

Each input comes with the time; what should happen in consequence is collected as effects, which
the shell (`node`) takes and carries out. The deciding itself is done by the pure functions of
`membership`, `suspicion` and `election`; this class holds their values and puts them in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mesh import membership, suspicion
from mesh.circle import Circle
from mesh.crowd import Crowd
from mesh.effects import Cut, Effect, Emit, Forget, Tell
from mesh.election import Situation
from mesh.events import PeerForgot, ViewChanged
from mesh.heartbeat import Beats, hears_us
from mesh.ids import Address, Epoch, PeerId
from mesh.leadership import Leadership
from mesh.limits import DEAD_CONFIRMED_S, MAX_MEMBERS, PROTOCOL_VERSION, SUSPECT_AFTER_S
from mesh.membership import ChangeKind, Claim, Member, Membership, Record, View
from mesh.messages import (
    Beat,
    Crowded,
    Health,
    Hello,
    Lead,
    News,
    Rumour,
    Sighting,
    Vote,
    VoteRequest,
    Yield,
)
from mesh.peer_events import events_of
from mesh.remembered import Remembered
from mesh.state_store import KnownPeer, StateStore

GONE = (Health.DEAD, Health.LEFT)


class Core:
    """The state of one node, from `start` to the end of its run."""

    def __init__(
        self, me: PeerId, name: str, store: StateStore, chance: Callable[[], float], merit: float
    ) -> None:
        self._disk = Remembered(store)
        self.table = Membership(Member(me, name, 0, Health.ALIVE, None), {})
        self.linked: set[PeerId] = set()
        self._beats = Beats()
        self._local = suspicion.LocalHealth()
        ballot = self._disk.state.ballot
        self._leadership = Leadership(me, ballot, self._disk.vote, self._do, chance, merit)
        self._crowd = Crowd(self, self._do, chance)
        self._circle = Circle(me)
        self._heard_epoch: Epoch | None = None  # that some of a crowd follow
        self._pleading = False  # we may not follow it, and its leader should know
        self._started_as = 0
        self._forgotten_as: dict[PeerId, int] = {}  # by whom, in which incarnation of ours
        self._sequence = 0
        self._late_s = 0.0
        self.is_stuck = False  # this device's own work does not get on, as the shell knows
        self._effects: list[Effect] = []
        self._beat_due = False
        self._is_stale = False  # the table has changed, and what is drawn from it has not
        self._here, self._members = self.table.here, self.table.members
        self.view = View(me, self._members, ballot.accepted, None, 0)

    # --- what the shell asks ---------------------------------------------------------------------

    @property
    def known_peers(self) -> tuple[KnownPeer, ...]:
        return self._disk.state.peers

    @property
    def is_crowd(self) -> bool:
        """Whether there are too many devices for links with all of them."""
        return self._crowd.is_on

    @property
    def local_health(self) -> suspicion.LocalHealth:
        return self._local

    @property
    def wake_s(self) -> float | None:
        """When `tick` should run again at the latest, for the election's sake."""
        return self._leadership.wake_s

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def take_beat_due(self) -> bool:
        """Whether something happened that the others should hear before the next beat is due."""
        due = self._beat_due or self._leadership.changed
        self._beat_due = self._leadership.changed = False
        return due

    def keeps(self, peer: PeerId) -> bool:
        """Whether the link with `peer` is of use, as far as this device knows."""
        if not self._crowd.is_on:
            return True
        wanted = peer in self._crowd.neighbours or peer in self._crowd.needed
        return wanted or peer in self._circle.members

    def needs(self, peer: PeerId, now_s: float) -> None:
        """Somebody here has something to say to `peer`."""
        self._crowd.need(peer, now_s)

    def hello(self) -> Hello:
        me = self.table.me
        return Hello(
            PROTOCOL_VERSION,
            me.peer,
            me.name,
            me.incarnation,
            self._started_as,
            me.address,
            self._leadership.ballot.accepted,
            () if self._crowd.is_on else self.table.sightings(),
        )

    def beaten(self, now_s: float) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """Who gets beats: those whose beats we expect, and those who only expect ours."""
        if not self._crowd.is_on:
            return frozenset(self.linked), frozenset()
        expected = self._circle.members
        if self._pleading and self._heard_epoch is not None:
            expected |= {self._heard_epoch.leader}
        return expected, self._circle.asking(now_s)

    def beat(self, *, expects: bool = True) -> Beat:
        now = self._situation()
        self._sequence += 1
        late_s, self._late_s = self._late_s, 0.0
        return Beat(
            sequence=self._sequence,
            incarnation=self.table.me.incarnation,
            epoch=now.ballot.accepted,
            leads=now.leads,
            has_leader=now.leader is not None,
            voted=now.ballot.voted,
            followers=now.followers,
            loop_lag_s=late_s,
            stuck=self.is_stuck,
            expects=expects,
            sightings=self.table.sightings(self._circle.members if self._crowd.is_on else None),
        )

    # --- inputs ----------------------------------------------------------------------------------

    def start(self, now_s: float, address: Address) -> None:
        """A new run: raises ConfigError if the incarnation cannot be made to last."""
        self._started_as = incarnation = self._disk.begin()
        me = replace(self.table.me, incarnation=incarnation, address=address)
        self.table = replace(self.table, me=me)
        self._leadership.start(now_s)
        self._is_stale = True
        self._react(now_s, "started")

    def refusal(self, hello: Hello) -> str | None:
        """Why a device that greets us cannot be a member."""
        if hello.peer not in self.table.records and len(self._here) >= MAX_MEMBERS:
            return f"this mesh already has {MAX_MEMBERS} devices, which is the most it takes"
        return None

    def take_hello(self, hello: Hello, address: Address | None, now_s: float) -> None:
        self.linked.add(hello.peer)
        self._take_sightings(hello.sightings, hello.peer, now_s)
        self._hear(hello, hello.incarnation, address, now_s)
        self._crowd.greet(hello.peer)
        record = self.table.records[hello.peer]
        if self._crowd.is_on and not record.member.is_here:
            self._do(Tell(hello.peer, News((membership.rumour_of(record),), None)))
        if hello.epoch is not None and hello.epoch.leader == hello.peer:
            self.follow(hello.epoch, now_s)
        self._beat_due = True  # it should know at once who leads
        self._react(now_s, "a link was made")

    def take_beat(self, hello: Hello, address: Address | None, beat: Beat, now_s: float) -> None:
        """A beat on the link that `hello` opened."""
        beats = self._beats.take(hello.peer, beat)
        record = self.table.records.get(hello.peer)
        if beats is None or record is None or beat.incarnation < record.member.incarnation:
            return
        self._take_sightings(beat.sightings, hello.peer, now_s)
        # A device that holds us dead cannot hear us; that we hear it makes no working link. But
        # one of two that hold each other dead has to begin.
        if hears_us(beat, self.view.me) or not record.member.is_here:
            self._hear(hello, beat.incarnation, address, now_s)
        if self.table.records[hello.peer].member.is_here:
            self._beats = beats
            if beat.expects:
                self._circle.asked(hello.peer, now_s)
        self._react(now_s, "a beat came")

    def take_crowded(self, peer: PeerId, message: Crowded, now_s: float) -> None:
        """What devices of a crowd say to each other."""
        self._crowd.take(peer, message, now_s)
        self._react(now_s, "the others told")

    def take_leave(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        self._apply(membership.depart(self.table, peer, incarnation), now_s)
        self._react(now_s, f"{peer.short} left")

    def take_vote_request(self, peer: PeerId, request: VoteRequest, now_s: float) -> None:
        self._leadership.take_vote_request(self._situation(), peer, request, now_s)
        self._react(now_s, "asked for a vote")

    def take_vote(self, peer: PeerId, vote: Vote, now_s: float) -> None:
        self._leadership.take_vote(peer, vote)
        self._react(now_s, "a vote came")

    def take_lead(self, peer: PeerId, lead: Lead, now_s: float) -> None:
        """The winner's word, half a beat before its beat says the same."""
        if lead.epoch.leader != peer:
            return
        self.follow(lead.epoch, now_s)
        beat = self._beats.latest.get(peer)
        newer = beat is not None and (beat.epoch is None or lead.epoch > beat.epoch)
        if beat is not None and newer:
            says = replace(beat, epoch=lead.epoch, leads=True, has_leader=True)
            self._beats = Beats({**self._beats.latest, peer: says})
            self._react(now_s, "a leader told us")
            if self.view.leader is None:  # our vote binds us: it should know, and go higher
                self._beat_due = True
        self._react(now_s, "a leader told us")

    def take_yield(self, peer: PeerId, message: Yield, now_s: float) -> None:
        self._leadership.take_yield(self._situation(), peer, message, now_s)
        self._react(now_s, f"{peer.short} gives way")

    def advance_epoch(self, now_s: float, reason: str) -> Epoch | None:
        """A higher counter under the same leader, which is us; it needs no vote, for those who
        follow us follow. None if this device does not lead, or the disk refuses.
        """
        epoch = self._leadership.raise_epoch(reason, now_s)
        self._react(now_s, reason)
        return epoch

    def link_lost(self, peer: PeerId, reason: str, now_s: float) -> None:
        """A few suspect at once; in a crowd, where a word would reach a thousand, we look first."""
        self.linked.discard(peer)
        if self._crowd.is_on:
            self._crowd.link_lost(peer, now_s)
        else:
            self._apply(membership.suspect(self.table, peer, f"link broke: {reason}"), now_s)
        self._react(now_s, "a link broke")

    def parked(self, peer: PeerId) -> None:
        """The link with `peer` was of no use, and both know."""
        self.linked.discard(peer)

    def refused(self, address: Address, now_s: float) -> None:
        """Nobody listens at `address` any more: whoever did, and has no link to us, is dead."""
        for peer, record in list(self.table.records.items()):
            if record.member.address == address:
                reason = f"nobody listens at {address} any more"
                self._apply(membership.bury(self.table, peer, reason), now_s)
        self._react(now_s, "a dial was refused")

    def tick(self, now_s: float, late_s: float) -> None:
        """Judges everybody's silence; `late_s` is how late this tick is."""
        self._late_s = max(self._late_s, late_s)
        self._local, judging = suspicion.check_self(self._local, late_s, now_s)
        if not judging:
            self.table = membership.forgive(self.table, late_s)
            self._crowd.slept()
            self._leadership.drop_candidacy()
            if self._leadership.leads:  # who still follows us, fresh beats must tell: an old count
                self._beats = Beats()  # would make the leader elected meanwhile give way to us
        else:
            for peer in sorted(self._circle.members - {self.table.me.peer}):
                self._judge(peer, now_s)
            if self._crowd.is_on:
                self._crowd.tick(self._local.factor, now_s)
            self._crowd.meet()
        self._react(now_s, "time passed")

    def wake(self, now_s: float) -> None:
        """Goes on with an election whose phase ended."""
        self._react(now_s, "an election phase ended")

    # --- what the crowd does to the table ---------------------------------------------------------

    @property
    def here(self) -> frozenset[PeerId]:
        return self._here

    @property
    def circle(self) -> frozenset[PeerId]:
        return self._circle.members

    @property
    def own_record(self) -> Record:
        return Record(self.table.me, self._started_as, 0.0)

    @property
    def news_epoch(self) -> Epoch | None:
        now = self._situation()
        return now.ballot.accepted if now.leader is not None else None

    def hear_of(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        """A sign of life of a member that is known already."""
        record = self.table.records.get(peer)
        if record is not None:
            member = record.member
            claim = Claim(peer, member.name, incarnation, record.started_as, member.address)
            self._apply(membership.hear(self.table, claim, now_s), now_s)
            self._crowd.heard(peer, incarnation, now_s)

    def learn(self, rumour: Rumour, now_s: float) -> None:
        if rumour.peer == self.table.me.peer:
            self._raise(membership.refute_rumour(self.table, rumour))
        else:
            self._apply(membership.learn(self.table, rumour, now_s), now_s)

    def accuse(self, peer: PeerId, reason: str, now_s: float) -> None:
        me = self.table.me.peer
        self._apply(membership.suspect(self.table, peer, reason), now_s)
        record = self.table.records[peer]
        if record.member.health is Health.SUSPECT:  # by others before us, perhaps: we confirm
            self._crowd.accuse(peer, record.member.incarnation, now_s)
            self._crowd.spread(membership.rumour_of(record, me))

    def bury(self, peer: PeerId, reason: str, now_s: float) -> None:
        self._apply(membership.bury(self.table, peer, reason), now_s)

    def follow(self, epoch: Epoch, now_s: float) -> None:
        """Some of a crowd follow this epoch: so do we, unless we are among those who elect."""
        if not self._crowd.is_on or epoch.leader not in self._here:
            return
        if self._heard_epoch is None or epoch > self._heard_epoch:
            self._heard_epoch = epoch
            self._redraw(now_s)
        if self._circle.is_hearsay and not self._leadership.follow(epoch, now_s):
            # What we voted for or followed before binds us; its leader can go above that.
            self._pleading = self._situation().leader is None
            if self._pleading:
                self._crowd.need(epoch.leader, now_s)

    # --- membership ------------------------------------------------------------------------------

    def _hear(self, hello: Hello, incarnation: int, address: Address | None, now_s: float) -> None:
        claim = Claim(hello.peer, hello.name, incarnation, hello.started_as, address)
        self._apply(membership.hear(self.table, claim, now_s), now_s)
        self._crowd.heard(hello.peer, incarnation, now_s)

    def _judge(self, peer: PeerId, now_s: float) -> None:
        record = self.table.records.get(peer)
        if record is None or not record.member.is_here:
            return
        if self._crowd.is_on and peer not in self._beats.latest:
            return  # an elector that we have not met as one: pings find out about it
        silence_s = now_s - record.heard_s
        confirmed_by: frozenset[PeerId] = frozenset()
        most_hold_it_dead = False
        if silence_s >= DEAD_CONFIRMED_S:
            incarnation, others = record.member.incarnation, self._circle.members - {peer}
            confirmed_by = self._beats.accusers(peer, incarnation, others)
            sure = self._beats.accusers(peer, incarnation, others, of=(Health.DEAD,))
            most_hold_it_dead = 2 * len(sure) > len(others) - 1  # this device is no witness
        verdict = suspicion.judge(
            record.member.health,
            silence_s,
            confirmed_by,
            self._local,
            most_hold_it_dead=most_hold_it_dead,
        )
        if verdict.health is Health.DEAD:
            self.bury(peer, verdict.reason, now_s)
        elif verdict.health is Health.SUSPECT and record.member.health is Health.ALIVE:
            self.accuse(peer, verdict.reason, now_s)
            self._crowd.ping(peer, now_s)

    def _take_sightings(
        self, sightings: tuple[Sighting, ...], teller: PeerId, now_s: float
    ) -> None:
        me = self.table.me
        self._note_forgotten(sightings, teller, now_s)
        raised = membership.refute(self.table, sightings)
        if raised is not None:
            self._raise(raised)
        elif any(s.peer == me.peer and s.health is Health.SUSPECT for s in sightings):
            self._do(Tell(teller, self.beat()))  # a sign of life is all it needs

    def _raise(self, incarnation: int | None) -> None:
        """Our own, to contradict what is said of us; only what is on disk counts."""
        if incarnation is not None and self._disk.raise_to(incarnation):
            self.table = replace(self.table, me=replace(self.table.me, incarnation=incarnation))
            self._is_stale = True
            self._beat_due = True
            self._crowd.spread(membership.rumour_of(self.own_record))

    def _note_forgotten(
        self, sightings: tuple[Sighting, ...], teller: PeerId, now_s: float
    ) -> None:
        """Whether the teller held this very process gone: once for each time that it did."""
        for sighting in sightings:
            if sighting.peer != self.table.me.peer or sighting.health not in GONE:
                continue
            if sighting.incarnation > self._forgotten_as.get(teller, self._started_as - 1):
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
                self._beats = self._beats.without(peer)
                self._beat_due = True
                if change.kind is ChangeKind.RESTARTED:
                    self._do(Forget(peer, change.reason))
                else:
                    self.linked.discard(peer)
                    self._do(Cut(peer, change.reason))
            case ChangeKind.REFUTED:
                silence_s = now_s - change.before.heard_s if change.before else 0.0
                if silence_s >= SUSPECT_AFTER_S:  # we accused an innocent device
                    self._local = suspicion.worsen(self._local, now_s)
            case ChangeKind.SUSPECTED | ChangeKind.JOINED | ChangeKind.UPDATED:
                pass
        self._is_stale = True
        self._pass_on(change)
        few = not self._crowd.is_on
        if few or peer in self.linked:
            self._disk.meet(change.record.member, few=few)

    def _pass_on(self, change: membership.Change) -> None:
        """To the crowd: all but suspicions, which travel with their accusers, and what clears one
        here alone.
        """
        if change.kind is ChangeKind.SUSPECTED:
            return
        before, record = change.before, change.record
        self._crowd.cleared(record.member.peer)
        raised = before is None or before.member.incarnation < record.member.incarnation
        if raised or change.kind is not ChangeKind.REFUTED:
            self._crowd.spread(membership.rumour_of(record))

    def _redraw(self, now_s: float) -> None:
        """The members changed: who they are, and with whom we exchange beats."""
        self._here = self.table.here
        self._crowd.count(len(self._here))
        epochs = (self._leadership.ballot.accepted, self._heard_epoch)
        leaders = [epoch.leader for epoch in epochs if epoch is not None]
        before = self._circle.members
        self._circle.draw(self._here, leaders, crowd=self._crowd.is_on)
        for peer in sorted(self._circle.members - before):  # its silence counts from now on
            self._beats = self._beats.without(peer)
            self.table = membership.listen(self.table, peer, now_s)
        members = self.table.members
        if members != self._members:  # kept as they are, so that a view that is the same shows it
            self._members = members
        self._is_stale = False

    def _situation(self) -> Situation:
        here, hearsay = self._here, self._circle.is_hearsay
        if self._crowd.is_on and not hearsay:
            here = self._circle.members | (frozenset(self._beats.latest) & here)
        return self._leadership.situation(here, self._beats.latest, hearsay=hearsay)

    def _react(self, now_s: float, reason: str) -> None:
        """What follows from an input: elections, and a new view if anything in it changed."""
        if self._is_stale:
            self._redraw(now_s)
        self._leadership.advance(self._situation(), now_s)
        if self._leadership.ballot.accepted != self.view.epoch:
            self._crowd.epoch_changed()
            self._redraw(now_s)
        epoch, leader = self._leadership.ballot.accepted, self._situation().leader
        self._pleading = self._pleading and leader is None
        before = self.view
        view = replace(
            before, members=self._members, epoch=epoch, leader=leader, degraded=self._degraded()
        )
        if view.members is not before.members or view.changes(before):
            self.view = replace(view, version=view.version + 1)
            self._do(Emit(ViewChanged(now_s, reason, self.view)))
        self._crowd.flush(now_s)

    def _degraded(self) -> frozenset[PeerId]:
        stuck = {peer for peer, beat in self._beats.latest.items() if beat.stuck}
        return frozenset(stuck | {self.table.me.peer} if self.is_stuck else stuck)

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)
