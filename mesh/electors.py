"""Among whom this device elects: it beats them, judges their silence, and knows where their beats
leave the election. Of a crowd they are few; who is none of them follows whom they elected.
"""

from __future__ import annotations

from mesh.circle import Circle
from mesh.election import Situation
from mesh.hearing import Hearing
from mesh.ids import Epoch, PeerId
from mesh.leadership import Leadership
from mesh.members import Members
from mesh.messages import Beat, Health
from mesh.probing import Probing


class Electors:
    """Drawn anew with each change of the members, and of the epoch."""

    def __init__(
        self, members: Members, hearing: Hearing, leadership: Leadership, probing: Probing
    ) -> None:
        self.circle = Circle(members.me.peer)
        self._members = members
        self._hearing = hearing
        self._leadership = leadership
        self._probing = probing
        self._heard_epoch: Epoch | None = None  # that some of a crowd follow
        self._pleading = False  # we may not follow it, and its leader should know
        self._sequence = 0

    # --- who they are ----------------------------------------------------------------------------

    def redraw(self, now_s: float) -> None:
        """The members changed: who they are, and with whom we exchange beats."""
        self._members.redraw()
        epochs = (self._leadership.ballot.accepted, self._heard_epoch)
        leaders = [epoch.leader for epoch in epochs if epoch is not None]
        before = self.circle.members
        self.circle.draw(self._members.here, leaders, crowd=self._members.is_crowd)
        for peer in sorted(self.circle.members - before):
            self._members.listen(peer, now_s)

    def situation(self) -> Situation:
        here, hearsay = self._members.here, self.circle.is_hearsay
        latest = self._hearing.beats.latest
        if self._members.is_crowd and not hearsay:
            here = self.circle.members | (frozenset(latest) & here)
        return self._leadership.situation(here, latest, hearsay=hearsay)

    # --- beats -----------------------------------------------------------------------------------

    def beaten(self, now_s: float) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """Who gets beats: those whose beats we expect, and those who only expect ours."""
        if not self._members.is_crowd:
            return frozenset(self._members.linked), frozenset()
        expected = self.circle.members
        if self._pleading and self._heard_epoch is not None:
            expected |= {self._heard_epoch.leader}
        return expected, self.circle.asking(now_s)

    def beat(self, late_s: float, *, stuck: bool, expects: bool) -> Beat:
        """All that this device says of itself, `late_s` being how late its loop was."""
        now, members = self.situation(), self._members
        self._sequence += 1
        return Beat(
            sequence=self._sequence,
            incarnation=members.me.incarnation,
            epoch=now.ballot.accepted,
            leads=now.leads,
            has_leader=now.leader is not None,
            voted=now.ballot.voted,
            followers=now.followers,
            loop_lag_s=late_s,
            stuck=stuck,
            expects=expects,
            sightings=members.table.sightings(self.circle.members if members.is_crowd else None),
        )

    def judge(self, now_s: float) -> None:
        """Everybody whose beats we expect, by its silence."""
        for peer in sorted(self.circle.members - {self._members.me.peer}):
            self._judge(peer, now_s)

    def _judge(self, peer: PeerId, now_s: float) -> None:
        record = self._members.find(peer)
        if record is None or not record.member.is_here:
            return
        if self._members.is_crowd and peer not in self._hearing.beats.latest:
            return  # an elector that we have not met as one: pings find out about it
        verdict = self._hearing.judge(record, self.circle.members - {peer}, now_s)
        if verdict.health is Health.DEAD:
            self._members.bury(peer, verdict.reason, now_s)
        elif verdict.health is Health.SUSPECT and record.member.health is Health.ALIVE:
            self._members.accuse(peer, verdict.reason, now_s)
            self._probing.ping(peer)

    # --- following -------------------------------------------------------------------------------

    def epoch(self) -> Epoch | None:
        """What the others of a crowd should follow, as far as we know."""
        now = self.situation()
        return now.ballot.accepted if now.leader is not None else None

    def follow(self, epoch: Epoch, now_s: float) -> bool:
        """Some of a crowd follow this epoch: so do we, unless we are among those who elect. True
        where we would, and may not: then its leader should have a link with us.
        """
        if not self._members.is_crowd or epoch.leader not in self._members.here:
            return False
        if self._heard_epoch is None or epoch > self._heard_epoch:
            self._heard_epoch = epoch
            self.redraw(now_s)
        if not self.circle.is_hearsay or self._leadership.follow(epoch, now_s):
            return False
        # What we voted for or followed before binds us; its leader can go above that.
        self._pleading = self.situation().leader is None
        return self._pleading

    def has_leader(self) -> None:
        """Nothing is left to plead for."""
        self._pleading = False
