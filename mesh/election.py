"""Who leads: every decision of an election, as a function of values with its reason in words.

Safety needs no timing: a device accepts an epoch only if its counter is above every counter it
accepted, and above every one it voted for somebody else; both are on disk before they count
(`Ballot.allows`). So no device ever accepts two leaders in one epoch counter.

Liveness: who holds its leader dead asks for pre-votes, which move no counter, then for votes; a
strict majority of the devices here decides. When two sides meet again, their beats suffice: the
leader with fewer followers gives way, and the other takes a counter above both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from mesh.ids import Epoch, PeerId
from mesh.limits import CANDIDATE_DELAY_MAX_S, CANDIDATE_DELAY_MIN_S, VOTE_TIMEOUT_S
from mesh.messages import Beat, Vote, VoteRequest


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a restart must not forget."""

    accepted: Epoch | None = None
    voted: Epoch | None = None  # the epoch that the candidate would lead

    @property
    def floor(self) -> int:
        accepted = self.accepted.counter if self.accepted else 0
        return max(accepted, self.voted.counter if self.voted else 0)

    def allows(self, epoch: Epoch) -> bool:
        """Whether `epoch` may be accepted."""
        if self.accepted is not None and epoch.counter <= self.accepted.counter:
            return False
        if self.voted is None or epoch.counter > self.voted.counter:
            return True
        return epoch == self.voted


def ballot_of(beat: Beat) -> Ballot:
    return Ballot(beat.epoch, beat.voted)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that an election decision looks at."""

    me: PeerId
    ballot: Ballot
    leads: bool  # this device acts as the leader of the epoch it accepted
    here: frozenset[PeerId]  # alive and suspected, this device included
    beats: Mapping[PeerId, Beat]  # the latest of each peer that is here
    is_hearsay: bool = False  # one of a crowd that gets no beats, and follows whom others follow

    @property
    def leader(self) -> PeerId | None:
        """The living leader of the accepted epoch, if it still says that it leads."""
        accepted = self.ballot.accepted
        if accepted is None:
            return None
        if accepted.leader == self.me:
            return self.me if self.leads else None
        if self.is_hearsay:
            return accepted.leader if accepted.leader in self.here else None
        beat = self.beats.get(accepted.leader)
        return accepted.leader if beat and beat.leads and beat.epoch == accepted else None

    @property
    def followers(self) -> int:
        """Devices here that accepted our epoch, this one included."""
        accepted = self.ballot.accepted
        return 1 + sum(accepted is not None and b.epoch == accepted for b in self.beats.values())

    @property
    def rival(self) -> PeerId | None:
        """Of the others here that say they lead, the one with the most followers."""
        leaders = [
            peer for peer, b in self.beats.items() if b.leads and b.epoch and b.epoch.leader == peer
        ]
        return max(leaders, key=lambda peer: (self.beats[peer].followers, peer), default=None)


@dataclass(frozen=True, slots=True)
class Accept:
    """Take this epoch as ours; we follow its leader, or are it."""

    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Ask `to` to take a counter above ours, so that we may follow it."""

    to: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class StepDown:
    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this request to everybody here; if binding, our own vote goes to disk first."""

    request: VoteRequest
    reason: str


Settlement = Accept | GiveWay | StepDown


def settle(now: Situation) -> Settlement | None:
    """What the beats alone decide, without a vote."""
    if now.is_hearsay:
        return None
    return _settle_leader(now) if now.leads else _settle_follower(now)


def answer_yield(now: Situation, theirs: Epoch) -> Accept | None:
    """A rival gives way: go above its counter, unless we already are, or give way ourselves."""
    if not now.leads or isinstance(settle(now), GiveWay):
        return None
    own = now.ballot.accepted
    if own is not None and own.counter > theirs.counter:
        return None
    counter = max(now.ballot.floor, theirs.counter) + 1
    return Accept(Epoch(counter, now.me), f"{theirs.leader.short} gives way; above its {theirs}")


def _settle_leader(now: Situation) -> Settlement | None:
    own = now.ballot.accepted
    assert own is not None, "a leader has accepted its own epoch"
    rival = now.rival
    if rival is not None:
        beat = now.beats[rival]
        if (beat.followers, rival) < (now.followers, now.me):
            return None
        words = f"{rival.short} has {beat.followers} followers, we have {now.followers}"
        if beat.epoch is not None and now.ballot.allows(beat.epoch):
            return Accept(beat.epoch, words)
        return GiveWay(rival, words)
    seekers = [ballot_of(b) for b in now.beats.values() if not b.has_leader and b.epoch != own]
    bound = [ballot.floor for ballot in seekers if not ballot.allows(own)]
    if bound:
        epoch = Epoch(max(*bound, now.ballot.floor) + 1, now.me)
        return Accept(epoch, "a device without a leader has promised not to follow a lower counter")
    moved = [b.epoch for b in now.beats.values() if b.has_leader and b.epoch and b.epoch > own]
    if moved and 2 * now.followers <= len(now.here):
        return StepDown(f"most devices here no longer follow us; one follows {max(moved)}")
    return None


def _settle_follower(now: Situation) -> Settlement | None:
    rival = now.rival
    if now.leader is not None or rival is None:
        return None
    epoch = now.beats[rival].epoch
    if epoch is None or not now.ballot.allows(epoch):
        return None  # our beat shows our floor; that leader will go above it
    return Accept(epoch, f"{rival.short} leads {now.beats[rival].followers}, we follow nobody")


def answer(now: Situation, candidate: PeerId, request: VoteRequest) -> Vote:
    """Our vote. A granted binding one goes to disk before it is sent."""
    refusal = _refusal(now, candidate, request)
    return Vote(
        request.counter, request.binding, refusal is None, now.ballot.floor, refusal or "granted"
    )


def _refusal(now: Situation, candidate: PeerId, request: VoteRequest) -> str | None:
    if now.is_hearsay:
        return "so many devices leave elections to a few, and I am not one of them"
    leader = now.leader or now.rival
    if leader is not None:
        return f"{leader.short} leads and is alive"
    if candidate not in now.here:
        return "the candidate is not in my view"
    if not now.ballot.allows(Epoch(request.counter, candidate)):
        return f"counter {request.counter} is not above my {now.ballot.floor}"
    return None


class Phase(StrEnum):
    IDLE = "idle"
    WAITING = "waiting"
    PRE_VOTE = "pre-vote"
    VOTE = "vote"


@dataclass(frozen=True, slots=True)
class Candidacy:
    """How far this device is in standing for election; `until_s` ends the phase."""

    phase: Phase = Phase.IDLE
    until_s: float = 0.0
    counter: int = 0
    granted: frozenset[PeerId] = frozenset()
    refused: frozenset[PeerId] = frozenset()
    floor: int = 0  # the highest that a voter told us


def delay_s(now: Situation, merit: float, chance: float) -> float:
    """How long to wait before standing: slots in the order of ids, less for merit (0..1).

    Half of each slot stays empty, so that one device asks for votes well before the next.
    """
    slot = (sorted(now.here).index(now.me) + chance / 2) / len(now.here)
    spread = CANDIDATE_DELAY_MAX_S - CANDIDATE_DELAY_MIN_S
    return (CANDIDATE_DELAY_MIN_S + spread * slot) * (1 - merit / 2)


def stand(
    now: Situation, candidacy: Candidacy, now_s: float, wait_s: float
) -> tuple[Candidacy, Ask | Accept | None]:
    """The next step of our candidacy; `wait_s` is the delay to use if one begins now."""
    if now.is_hearsay or now.leader is not None or now.rival is not None:
        return Candidacy(), None
    floor = max(
        candidacy.floor, now.ballot.floor, *(ballot_of(b).floor for b in now.beats.values())
    )
    waiting = Candidacy(Phase.WAITING, now_s + wait_s, floor=floor)
    if candidacy.phase is Phase.IDLE:
        return waiting, None
    if candidacy.phase is Phase.WAITING:
        if now_s < candidacy.until_s:
            return candidacy, None
        return _ask(now, now_s, floor + 1, binding=False)
    if _is_majority(candidacy.granted, now.here):
        if candidacy.phase is Phase.PRE_VOTE:
            return _ask(now, now_s, candidacy.counter, binding=True)
        words = f"{len(candidacy.granted & now.here)} of {len(now.here)} voted for us"
        return Candidacy(), Accept(Epoch(candidacy.counter, now.me), words)
    hopeless = not _is_majority(now.here - candidacy.refused, now.here)
    if hopeless or now_s >= candidacy.until_s:
        return waiting, None
    return candidacy, None


def count(candidacy: Candidacy, voter: PeerId, vote: Vote) -> Candidacy:
    """The candidacy with this vote in it; votes for an earlier try are ignored."""
    binding = candidacy.phase is Phase.VOTE
    if candidacy.phase in (Phase.IDLE, Phase.WAITING):
        return candidacy
    if (vote.counter, vote.binding) != (candidacy.counter, binding):
        return candidacy
    floor = max(candidacy.floor, vote.floor)
    if vote.granted:
        return replace(candidacy, granted=candidacy.granted | {voter}, floor=floor)
    return replace(candidacy, refused=candidacy.refused | {voter}, floor=floor)


def _ask(now: Situation, now_s: float, counter: int, *, binding: bool) -> tuple[Candidacy, Ask]:
    phase = Phase.VOTE if binding else Phase.PRE_VOTE
    candidacy = Candidacy(phase, now_s + VOTE_TIMEOUT_S, counter, frozenset((now.me,)))
    words = f"no leader among {len(now.here)} devices; standing for counter {counter}"
    return candidacy, Ask(VoteRequest(counter, binding), words)


def _is_majority(voters: frozenset[PeerId], here: frozenset[PeerId]) -> bool:
    return 2 * len(voters & here) > len(here)
