"""All that a node knows of the mesh, without a clock, a network or a task: inputs in, effects out.

Each input comes with the time; what should happen in consequence is collected as effects, which
the shell (`node`) takes and carries out. The deciding itself is done by the pure functions of
`membership`, `suspicion` and `election`; this class holds their values and puts them in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from mesh import membership, suspicion
from mesh.effects import Cut, Effect, Emit, Forget, Tell
from mesh.election import Ballot, Situation
from mesh.errors import ConfigError
from mesh.events import ViewChanged
from mesh.heartbeat import Beats, hears_us
from mesh.ids import Address, Epoch, PeerId
from mesh.leadership import Leadership
from mesh.limits import DEAD_CONFIRMED_S, MAX_MEMBERS, PROTOCOL_VERSION, SUSPECT_AFTER_S
from mesh.membership import ChangeKind, Claim, Member, Membership, View
from mesh.messages import Beat, Health, Hello, Lead, Sighting, Vote, VoteRequest, Yield
from mesh.peer_events import events_of
from mesh.state_store import KnownPeer, StateStore, StoredState

_log = logging.getLogger(__name__)


class Core:
    """The state of one node, from `start` to the end of its run."""

    def __init__(
        self, me: PeerId, name: str, store: StateStore, chance: Callable[[], float], merit: float
    ) -> None:
        self._store = store
        self._stored = store.load()
        self._table = Membership(Member(me, name, 0, Health.ALIVE, None), {})
        self._beats = Beats()
        self._local = suspicion.LocalHealth()
        self._leadership = Leadership(
            me, self._stored.ballot, self._save_ballot, self._do, chance, merit
        )
        self._started_as = 0
        self._sequence = 0
        self._late_s = 0.0
        self._effects: list[Effect] = []
        self._beat_due = False
        self.view = View(me, self._table.members, self._stored.ballot.accepted, None, 0)

    # --- what the shell asks ---------------------------------------------------------------------

    @property
    def known_peers(self) -> tuple[KnownPeer, ...]:
        return self._stored.peers

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

    def hello(self) -> Hello:
        me = self._table.me
        epoch = self._stored.ballot.accepted
        return Hello(
            PROTOCOL_VERSION,
            me.peer,
            me.name,
            me.incarnation,
            self._started_as,
            me.address,
            epoch,
            self._table.sightings,
        )

    def beat(self) -> Beat:
        now = self._situation()
        self._sequence += 1
        late_s, self._late_s = self._late_s, 0.0
        return Beat(
            sequence=self._sequence,
            incarnation=self._table.me.incarnation,
            epoch=now.ballot.accepted,
            leads=now.leads,
            has_leader=now.leader is not None,
            voted=now.ballot.voted,
            followers=now.followers,
            loop_lag_s=late_s,
            sightings=self._table.sightings,
        )

    # --- inputs ----------------------------------------------------------------------------------

    def start(self, now_s: float, address: Address) -> None:
        """A new run: raises ConfigError if the incarnation cannot be made to last."""
        incarnation = self._stored.incarnation + 1
        self._store.save(replace(self._stored, incarnation=incarnation))
        self._stored = replace(self._stored, incarnation=incarnation)
        self._started_as = incarnation
        me = replace(self._table.me, incarnation=incarnation, address=address)
        self._table = replace(self._table, me=me)
        self._leadership.start(now_s)
        self._react(now_s, "started")

    def refusal(self, hello: Hello) -> str | None:
        """Why a device that greets us cannot be a member."""
        if hello.peer not in self._table.records and len(self._table.here) >= MAX_MEMBERS:
            return f"this mesh already has {MAX_MEMBERS} devices, which is the most it takes"
        return None

    def take_hello(self, hello: Hello, address: Address | None, now_s: float) -> None:
        self._take_sightings(hello.sightings)
        self._hear(hello, hello.incarnation, address, now_s)
        self._beat_due = True  # it should know at once who leads
        self._react(now_s, "a link was made")

    def take_beat(self, hello: Hello, address: Address | None, beat: Beat, now_s: float) -> None:
        """A beat on the link that `hello` opened."""
        beats = self._beats.take(hello.peer, beat)
        record = self._table.records.get(hello.peer)
        if beats is None or record is None or beat.incarnation < record.member.incarnation:
            return
        self._take_sightings(beat.sightings, hello.peer)
        # A device that holds us dead cannot hear us; that we hear it makes no working link. But
        # one of two that hold each other dead has to begin.
        if hears_us(beat, self.view.me) or not record.member.is_here:
            self._hear(hello, beat.incarnation, address, now_s)
        if self._table.records[hello.peer].member.is_here:
            self._beats = beats
        self._react(now_s, "a beat came")

    def take_leave(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        self._apply(membership.depart(self._table, peer, incarnation), now_s)
        self._react(now_s, f"{peer.short} left")

    def take_vote_request(self, peer: PeerId, request: VoteRequest, now_s: float) -> None:
        self._leadership.take_vote_request(self._situation(), peer, request, now_s)
        self._react(now_s, "asked for a vote")

    def take_vote(self, peer: PeerId, vote: Vote, now_s: float) -> None:
        self._leadership.take_vote(peer, vote)
        self._react(now_s, "a vote came")

    def take_lead(self, peer: PeerId, lead: Lead, now_s: float) -> None:
        """The winner's word, half a beat before its beat says the same."""
        beat = self._beats.latest.get(peer)
        newer = beat is not None and (beat.epoch is None or lead.epoch > beat.epoch)
        if beat is not None and newer and lead.epoch.leader == peer:
            says = replace(beat, epoch=lead.epoch, leads=True, has_leader=True)
            self._beats = Beats({**self._beats.latest, peer: says})
            self._react(now_s, "a leader told us")
            if self.view.leader is None:  # our vote binds us: it should know, and go higher
                self._beat_due = True

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
        self._apply(membership.suspect(self._table, peer, f"link broke: {reason}"), now_s)
        self._react(now_s, "a link broke")

    def refused(self, address: Address, now_s: float) -> None:
        """Nobody listens at `address` any more: whoever did, and has no link to us, is dead."""
        for peer, record in list(self._table.records.items()):
            if record.member.address == address:
                reason = f"nobody listens at {address} any more"
                self._apply(membership.bury(self._table, peer, reason), now_s)
        self._react(now_s, "a dial was refused")

    def tick(self, now_s: float, late_s: float) -> None:
        """Judges everybody's silence; `late_s` is how late this tick is."""
        self._late_s = max(self._late_s, late_s)
        self._local, judging = suspicion.check_self(self._local, late_s, now_s)
        if not judging:
            self._table = membership.forgive(self._table, late_s)
            self._leadership.drop_candidacy()
            if self._leadership.leads:  # who still follows us, fresh beats must tell: an old count
                self._beats = Beats()  # would make the leader elected meanwhile give way to us
        for peer, record in list(self._table.records.items()):
            if judging and record.member.is_here:
                self._judge(peer, now_s)
        self._react(now_s, "time passed")

    def wake(self, now_s: float) -> None:
        """Goes on with an election whose phase ended."""
        self._react(now_s, "an election phase ended")

    # --- membership ------------------------------------------------------------------------------

    def _hear(self, hello: Hello, incarnation: int, address: Address | None, now_s: float) -> None:
        claim = Claim(hello.peer, hello.name, incarnation, hello.started_as, address)
        self._apply(membership.hear(self._table, claim, now_s), now_s)

    def _judge(self, peer: PeerId, now_s: float) -> None:
        record = self._table.records[peer]
        silence_s = now_s - record.heard_s
        confirmed_by: frozenset[PeerId] = frozenset()
        most_hold_it_dead = False
        if silence_s >= DEAD_CONFIRMED_S:
            incarnation, others = record.member.incarnation, self._table.here - {peer}
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
            self._apply(membership.bury(self._table, peer, verdict.reason), now_s)
        elif verdict.health is Health.SUSPECT:
            self._apply(membership.suspect(self._table, peer, verdict.reason), now_s)

    def _take_sightings(
        self, sightings: tuple[Sighting, ...], teller: PeerId | None = None
    ) -> None:
        me = self._table.me
        raised = membership.refute(self._table, sightings)
        if raised is not None and self._save(replace(self._stored, incarnation=raised)):
            self._table = replace(self._table, me=replace(me, incarnation=raised))
            self._beat_due = True
        elif any(s.peer == me.peer and s.health is Health.SUSPECT for s in sightings) and teller:
            self._do(Tell(teller, self.beat()))  # a sign of life is all it needs

    def _apply(self, outcome: membership.Outcome, now_s: float) -> None:
        self._table, change = outcome
        if change is None:
            return
        for event in events_of(change, now_s):
            self._do(Emit(event))
        peer = change.record.member.peer
        match change.kind:
            case ChangeKind.DIED | ChangeKind.LEFT | ChangeKind.RESTARTED:
                self._beats = self._beats.without(peer)
                self._beat_due = True
                gone = Forget if change.kind is ChangeKind.RESTARTED else Cut
                self._do(gone(peer, change.reason))
            case ChangeKind.REFUTED:
                silence_s = now_s - change.before.heard_s if change.before else 0.0
                if silence_s >= SUSPECT_AFTER_S:  # we accused an innocent device
                    self._local = suspicion.worsen(self._local, now_s)
            case ChangeKind.SUSPECTED | ChangeKind.JOINED | ChangeKind.UPDATED:
                pass
        self._remember(change.record.member)

    def _remember(self, member: Member) -> None:
        if member.address is None:
            return
        known = KnownPeer(member.peer, member.name, member.address)
        if known not in self._stored.peers:
            others = [peer for peer in self._stored.peers if peer.peer != member.peer]
            self._save(replace(self._stored, peers=(known, *others[: MAX_MEMBERS - 1])))

    def _situation(self) -> Situation:
        return self._leadership.situation(self._table.here, self._beats.latest)

    def _react(self, now_s: float, reason: str) -> None:
        """What follows from an input: elections, and a new view if anything in it changed."""
        self._leadership.advance(self._situation(), now_s)
        view = replace(
            self.view,
            members=self._table.members,
            epoch=self._leadership.ballot.accepted,
            leader=self._situation().leader,
        )
        if view != self.view:
            self.view = replace(view, version=view.version + 1)
            self._do(Emit(ViewChanged(now_s, reason, self.view)))

    def _do(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _save_ballot(self, ballot: Ballot) -> bool:
        return self._save(replace(self._stored, ballot=ballot))

    def _save(self, state: StoredState) -> bool:
        """False if the disk refuses: then what the state was for must not happen."""
        if state == self._stored:
            return True
        try:
            self._store.save(state)
        except ConfigError as error:
            _log.warning("%s", error)
            return False
        self._stored = state
        return True
