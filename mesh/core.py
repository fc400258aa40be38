"""All that a node knows of the mesh, without a clock, a network or a task: inputs in, effects out.

Each input comes with the time; what should happen in consequence is collected as effects, which
the shell (`node`) takes and carries out. The deciding itself is done by the pure functions of
`membership`, `suspicion` and `election`; `members`, `hearing` and `leadership` hold their values,
and this class puts them in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mesh import membership
from mesh.crowd import Crowd
from mesh.effects import Effect, Emit, Tell
from mesh.electors import Electors
from mesh.events import ViewChanged
from mesh.gossip import Gossip
from mesh.hearing import Hearing
from mesh.heartbeat import hears_us
from mesh.ids import Address, Epoch, PeerId
from mesh.inquiries import Inquiries
from mesh.leadership import Leadership
from mesh.limits import MAX_MEMBERS, PROTOCOL_VERSION
from mesh.members import Members
from mesh.membership import Claim, Member, View
from mesh.messages import (
    Beat,
    Crowded,
    Health,
    Hello,
    Lead,
    News,
    Sighting,
    Vote,
    VoteRequest,
    Yield,
)
from mesh.probing import Probing
from mesh.remembered import Remembered
from mesh.state_store import KnownPeer, StateStore
from mesh.suspicion import LocalHealth
from mesh.swim import tellings


class Core:
    """The state of one node, from `start` to the end of its run."""

    def __init__(
        self, me: PeerId, name: str, store: StateStore, chance: Callable[[], float], merit: float
    ) -> None:
        self._effects: list[Effect] = []
        self._disk = Remembered(store)
        ballot = self._disk.state.ballot
        self._leadership = Leadership(me, ballot, self._disk.vote, self._do, chance, merit)
        self._hearing = Hearing()
        self._inquiries = Inquiries(self._do)
        self._gossip = Gossip(self._do, chance, lambda: self._electors.epoch())
        self._members = Members(
            Member(me, name, 0, Health.ALIVE, None),
            self._disk,
            self._do,
            self._hearing,
            self._inquiries,
            self._gossip,
        )
        self._probing = Probing(self._members, self._inquiries, self._gossip, self._do, chance)
        self._electors = Electors(self._members, self._hearing, self._leadership, self._probing)
        self._crowd = Crowd(
            self._members, self._electors, self._probing, self._gossip, self._do, chance
        )
        self._late_s = 0.0
        self.is_stuck = False  # this device's own work does not get on, as the shell knows
        self._beat_due = False
        self.view = View(me, self._members.all, ballot.accepted, None, 0)

    # --- what the shell asks ---------------------------------------------------------------------

    @property
    def known_peers(self) -> tuple[KnownPeer, ...]:
        return self._disk.state.peers

    @property
    def is_crowd(self) -> bool:
        """Whether there are too many devices for links with all of them."""
        return self._members.is_crowd

    @property
    def local_health(self) -> LocalHealth:
        return self._hearing.local

    @property
    def wake_s(self) -> float | None:
        """When `tick` should run again at the latest, for the election's sake."""
        return self._leadership.wake_s

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def take_beat_due(self) -> bool:
        """Whether something happened that the others should hear before the next beat is due."""
        due = self._beat_due or self._members.changed or self._leadership.changed
        self._beat_due = self._members.changed = self._leadership.changed = False
        return due

    def keeps(self, peer: PeerId) -> bool:
        """Whether the link with `peer` is of use, as far as this device knows."""
        return not self.is_crowd or self._crowd.keeps(peer)

    def needs(self, peer: PeerId, now_s: float) -> None:
        """Somebody here has something to say to `peer`."""
        self._crowd.need(peer, now_s)

    def hello(self) -> Hello:
        me = self._members.me
        return Hello(
            PROTOCOL_VERSION,
            me.peer,
            me.name,
            me.incarnation,
            self._members.started_as,
            me.address,
            self._leadership.ballot.accepted,
            () if self._members.is_crowd else self._members.table.sightings(),
        )

    def beaten(self, now_s: float) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """Who gets beats: those whose beats we expect, and those who only expect ours."""
        return self._electors.beaten(now_s)

    def beat(self, *, expects: bool = True) -> Beat:
        late_s, self._late_s = self._late_s, 0.0
        return self._electors.beat(late_s, stuck=self.is_stuck, expects=expects)

    # --- inputs ----------------------------------------------------------------------------------

    def start(self, now_s: float, address: Address) -> None:
        """A new run: raises ConfigError if the incarnation cannot be made to last."""
        self._members.start(address)
        self._leadership.start(now_s)
        self._react(now_s, "started")

    def refusal(self, hello: Hello) -> str | None:
        """Why a device that greets us cannot be a member."""
        if self._members.find(hello.peer) is None and len(self._members.here) >= MAX_MEMBERS:
            return f"this mesh already has {MAX_MEMBERS} devices, which is the most it takes"
        return None

    def take_hello(self, hello: Hello, address: Address | None, now_s: float) -> None:
        self._members.linked.add(hello.peer)
        self._take_sightings(hello.sightings, hello.peer, now_s)
        self._hear(hello, hello.incarnation, address, now_s)
        self._crowd.greet(hello.peer)
        record = self._members.table.records[hello.peer]
        if self._members.is_crowd and not record.member.is_here:
            self._do(Tell(hello.peer, News((membership.rumour_of(record),), None)))
        if hello.epoch is not None and hello.epoch.leader == hello.peer:
            self._crowd.follow(hello.epoch, now_s)
        self._beat_due = True  # it should know at once who leads
        self._react(now_s, "a link was made")

    def take_beat(self, hello: Hello, address: Address | None, beat: Beat, now_s: float) -> None:
        """A beat on the link that `hello` opened."""
        beats = self._hearing.beats.take(hello.peer, beat)
        record = self._members.find(hello.peer)
        if beats is None or record is None or beat.incarnation < record.member.incarnation:
            return
        self._take_sightings(beat.sightings, hello.peer, now_s)
        # A device that holds us dead cannot hear us; that we hear it makes no working link. But
        # one of two that hold each other dead has to begin.
        if hears_us(beat, self.view.me) or not record.member.is_here:
            self._hear(hello, beat.incarnation, address, now_s)
        if self._members.table.records[hello.peer].member.is_here:
            self._hearing.beats = beats
            if beat.expects:
                self._electors.circle.asked(hello.peer, now_s)
        self._react(now_s, "a beat came")

    def take_crowded(self, peer: PeerId, message: Crowded, now_s: float) -> None:
        """What devices of a crowd say to each other."""
        self._crowd.take(peer, message, now_s)
        self._react(now_s, "the others told")

    def take_leave(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        self._members.depart(peer, incarnation, now_s)
        self._react(now_s, f"{peer.short} left")

    def take_vote_request(self, peer: PeerId, request: VoteRequest, now_s: float) -> None:
        self._leadership.take_vote_request(self._electors.situation(), peer, request, now_s)
        self._react(now_s, "asked for a vote")

    def take_vote(self, peer: PeerId, vote: Vote, now_s: float) -> None:
        self._leadership.take_vote(peer, vote)
        self._react(now_s, "a vote came")

    def take_lead(self, peer: PeerId, lead: Lead, now_s: float) -> None:
        """The winner's word, half a beat before its beat says the same."""
        if lead.epoch.leader != peer:
            return
        self._crowd.follow(lead.epoch, now_s)
        if self._hearing.take_lead(lead):
            self._react(now_s, "a leader told us")
            if self.view.leader is None:  # our vote binds us: it should know, and go higher
                self._beat_due = True
        self._react(now_s, "a leader told us")

    def take_yield(self, peer: PeerId, message: Yield, now_s: float) -> None:
        self._leadership.take_yield(self._electors.situation(), peer, message, now_s)
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
        self._members.linked.discard(peer)
        if self._members.is_crowd:
            self._probing.link_lost(peer, now_s)
        else:
            self._members.suspect(peer, f"link broke: {reason}", now_s)
        self._react(now_s, "a link broke")

    def parked(self, peer: PeerId) -> None:
        """The link with `peer` was of no use, and both know."""
        self._members.linked.discard(peer)

    def refused(self, address: Address, now_s: float) -> None:
        """Nobody listens at `address` any more: whoever did, and has no link to us, is dead."""
        self._members.bury_at(address, f"nobody listens at {address} any more", now_s)
        self._react(now_s, "a dial was refused")

    def tick(self, now_s: float, late_s: float) -> None:
        """Judges everybody's silence; `late_s` is how late this tick is."""
        self._late_s = max(self._late_s, late_s)
        if not self._hearing.check_self(late_s, now_s):
            self._members.forgive(late_s)
            self._inquiries.slept()
            self._leadership.drop_candidacy()
            if self._leadership.leads:  # who still follows us, fresh beats must tell: an old count
                self._hearing.forget_all()  # would make the leader elected meanwhile give way to us
        else:
            self._electors.judge(now_s)
            if self._members.is_crowd:
                self._crowd.tick(self._hearing.local.factor, now_s)
            self._crowd.meet()
        self._react(now_s, "time passed")

    def wake(self, now_s: float) -> None:
        """Goes on with an election whose phase ended."""
        self._react(now_s, "an election phase ended")

    # --- what follows ----------------------------------------------------------------------------

    def _hear(self, hello: Hello, incarnation: int, address: Address | None, now_s: float) -> None:
        claim = Claim(hello.peer, hello.name, incarnation, hello.started_as, address)
        self._members.hear(claim, now_s)

    def _take_sightings(
        self, sightings: tuple[Sighting, ...], teller: PeerId, now_s: float
    ) -> None:
        if self._members.take_sightings(sightings, teller, now_s):
            self._do(Tell(teller, self.beat()))

    def _react(self, now_s: float, reason: str) -> None:
        """What follows from an input: elections, and a new view if anything in it changed."""
        if self._members.is_stale:
            self._electors.redraw(now_s)
        self._leadership.advance(self._electors.situation(), now_s)
        if self._leadership.ballot.accepted != self.view.epoch:
            self._gossip.epoch_changed(tellings(len(self._members.here)))
            self._electors.redraw(now_s)
        epoch, leader = self._leadership.ballot.accepted, self._electors.situation().leader
        if leader is not None:
            self._electors.has_leader()
        before, members, degraded = self.view, self._members.all, self._degraded()
        view = replace(before, members=members, epoch=epoch, leader=leader, degraded=degraded)
        if view.members is not before.members or view.changes(before):
            self.view = replace(view, version=view.version + 1)
            self._do(Emit(ViewChanged(now_s, reason, self.view)))
        self._crowd.flush(now_s)

    def _degraded(self) -> frozenset[PeerId]:
        stuck = self._hearing.stuck
        return stuck | {self._members.me.peer} if self.is_stuck else stuck

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)
