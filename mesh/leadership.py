"""This device's part in elections: its ballot, whether it leads, whether it stands.

The decisions are `election`'s; here they are carried out in the one safe order: what was decided
goes to disk, then it counts, then the others are told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from mesh import election
from mesh.effects import Effect, Emit, Tell
from mesh.election import Accept, Ask, Ballot, Candidacy, GiveWay, Phase, Situation, StepDown
from mesh.events import LeaderElected
from mesh.fault_points import reach
from mesh.ids import Epoch, PeerId
from mesh.limits import JOIN_WINDOW_S, VOTE_TIMEOUT_S
from mesh.messages import Beat, Lead, Vote, VoteRequest, Yield

_log = logging.getLogger(__name__)


class Leadership:
    """`save` keeps a ballot for good, or returns False; then nothing of it may happen."""

    def __init__(
        self,
        me: PeerId,
        ballot: Ballot,
        save: Callable[[Ballot], bool],
        do: Callable[[Effect], None],
        chance: Callable[[], float],  # 0..1, anew with each call
        merit: float,
    ) -> None:
        self.ballot = ballot
        self.leads = False
        self.changed = False  # the others should hear of it before the next beat is due
        self._me = me
        self._save = save
        self._do = do
        self._chance = chance
        self._merit = merit
        self._candidacy = Candidacy()
        self._ready_s: float | None = None  # until then we look for a mesh that has a leader

    @property
    def wake_s(self) -> float | None:
        """When `advance` should be called again at the latest."""
        if self._candidacy.phase is Phase.IDLE:
            return self._ready_s
        return self._candidacy.until_s

    def start(self, now_s: float) -> None:
        self._ready_s = now_s + JOIN_WINDOW_S

    def situation(
        self, here: frozenset[PeerId], beats: Mapping[PeerId, Beat], *, hearsay: bool = False
    ) -> Situation:
        known = {peer: beat for peer, beat in beats.items() if peer in here}
        return Situation(self._me, self.ballot, self.leads, here, known, hearsay)

    def advance(self, now: Situation, now_s: float) -> None:
        """All that follows from the situation: what beats settle, then our own candidacy."""
        while self._settle(now, now_s) or self._stand(now, now_s):
            now = replace(now, ballot=self.ballot, leads=self.leads)

    def take_vote_request(
        self, now: Situation, peer: PeerId, request: VoteRequest, now_s: float
    ) -> None:
        vote = election.answer(now, peer, request)
        if vote.granted and request.binding:
            if self._keep(replace(self.ballot, voted=Epoch(request.counter, peer))):
                # give the candidate time to win and to tell us
                self._candidacy = Candidacy(Phase.WAITING, now_s + 2 * VOTE_TIMEOUT_S)
            else:
                vote = replace(vote, granted=False, reason="the vote could not be made to last")
        self._do(Tell(peer, vote))

    def take_vote(self, peer: PeerId, vote: Vote) -> None:
        self._candidacy = election.count(self._candidacy, peer, vote)

    def take_yield(self, now: Situation, peer: PeerId, message: Yield, now_s: float) -> None:
        action = election.answer_yield(now, message.epoch)
        if action is not None and message.epoch.leader == peer:
            self._accept(action, now_s)
        self.changed = True

    def follow(self, epoch: Epoch, now_s: float) -> bool:
        """Others of a crowd follow `epoch`; whether we do now, or did before."""
        if self.ballot.accepted == epoch:
            return True
        words = f"others follow {epoch.leader.short}"
        return self.ballot.allows(epoch) and self._accept(Accept(epoch, words), now_s)

    def raise_epoch(self, reason: str, now_s: float) -> Epoch | None:
        """Our next epoch, if we lead; None if not, or if it could not be made to last."""
        epoch = Epoch(self.ballot.floor + 1, self._me)
        return epoch if self.leads and self._accept(Accept(epoch, reason), now_s) else None

    def drop_candidacy(self) -> None:
        """We did not run for a while: whatever we stood for is out of date."""
        self._candidacy = Candidacy()

    def _settle(self, now: Situation, now_s: float) -> bool:
        """One thing that beats alone decide; False if there is none, or it waits for others."""
        match election.settle(now):
            case Accept() as action:
                return self._accept(action, now_s)
            case StepDown(reason):
                _log.info("%s steps down: %s", self._me.short, reason)
                self.leads = False
                self.changed = True
                return True
            case GiveWay(to, _):
                assert now.ballot.accepted is not None, "only a leader gives way"
                self._do(Tell(to, Yield(now.ballot.accepted)))
        return False

    def _stand(self, now: Situation, now_s: float) -> bool:
        """One step of our candidacy; False if there is none to take now."""
        if self._ready_s is not None and now_s < self._ready_s:
            return False
        self._ready_s = None
        delay_s = election.delay_s(now, self._merit, self._chance())
        candidacy, action = election.stand(now, self._candidacy, now_s, delay_s)
        if isinstance(action, Ask) and action.request.binding:
            own_vote = Epoch(action.request.counter, self._me)
            if not self._keep(replace(self.ballot, voted=own_vote)):
                self._candidacy = Candidacy()
                return False
        self._candidacy = candidacy
        if isinstance(action, Accept):
            return self._accept(action, now_s)
        if isinstance(action, Ask):
            self._do(Tell(None, action.request))
        return action is not None

    def _accept(self, action: Accept, now_s: float) -> bool:
        assert self.ballot.allows(action.epoch), "an epoch at or below our floor"
        if not self._keep(replace(self.ballot, accepted=action.epoch)):
            return False
        reach("epoch.persisted")
        self.leads = action.epoch.leader == self._me
        self.changed = True
        self._candidacy = Candidacy()
        self._do(Emit(LeaderElected(now_s, action.reason, action.epoch)))
        if self.leads:
            self._do(Tell(None, Lead(action.epoch)))
        return True

    def _keep(self, ballot: Ballot) -> bool:
        if not self._save(ballot):
            return False
        self.ballot = ballot
        return True
