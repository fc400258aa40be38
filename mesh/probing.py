"""How a device of a crowd finds out who is gone: it pings one neighbour after the other, has others
look where one does not answer, accuses, and buries whom enough accuse for long enough.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.effects import Dial, Effect, Tell
from mesh.gossip import Gossip
from mesh.ids import Address, PeerId
from mesh.inquiries import Inquiries
from mesh.limits import PING_EVERY_S, RELAY_TIMEOUT_S, RELAYS
from mesh.members import Members
from mesh.messages import Health, News, Ping, Rumour, Seek
from mesh.overlay import some
from mesh.swim import Probe, Step, next_step, suspicion_s


class Probing:
    """`chance` is 0..1, anew with each call."""

    def __init__(
        self,
        members: Members,
        inquiries: Inquiries,
        gossip: Gossip,
        do: Callable[[Effect], None],
        chance: Callable[[], float],
    ) -> None:
        self._members = members
        self._inquiries = inquiries
        self._gossip = gossip
        self._do = do
        self._chance = chance
        self._round: list[PeerId] = []
        self._ping_s = 0.0
        self._number = 0

    # --- time ------------------------------------------------------------------------------------

    def tick(self, factor: int, now_s: float) -> None:
        """`factor` is our own health's: how much longer we wait than a healthy device."""
        for probe in list(self._inquiries.probes.values()):
            self._follow_up(probe, factor, now_s)
        self._bury_the_silent(factor, now_s)
        if now_s >= self._ping_s:
            self._ping_s = now_s + PING_EVERY_S * factor
            self._ping_next(now_s)

    # --- asking ----------------------------------------------------------------------------------

    def ping(self, peer: PeerId) -> None:
        self._number += 1
        incarnation = self._members.me.incarnation
        self._do(Tell(peer, Ping(self._number, incarnation, self._gossip.news())))

    def probe(self, peer: PeerId, now_s: float) -> None:
        """Asks it, on a new link if there is none, and waits for the answer."""
        if peer in self._inquiries.probes:
            return
        self._inquiries.probes[peer] = Probe(peer, now_s)
        if peer in self._members.linked:
            self.ping(peer)
        else:
            self._members.dial(peer)

    def link_lost(self, peer: PeerId, now_s: float) -> None:
        """Its process may be gone, or only the link: others look at once, and so do we."""
        probe = self._inquiries.probes[peer] = Probe(peer, now_s)
        self._relay(probe, now_s)

    def seek(self, sought: PeerId, address: Address | None, asker: PeerId, now_s: float) -> None:
        """Looks on behalf of `asker`, which may know where."""
        if self._members.find(sought) is None or sought == asker:
            return
        self._inquiries.seek(sought, asker, now_s + RELAY_TIMEOUT_S)
        if sought in self._members.linked:
            self.ping(sought)
        elif address is not None:
            self._do(Dial(sought, address))

    def _ping_next(self, now_s: float) -> None:
        """One member: each of those linked in turn, the turns by chance."""
        if not self._round:
            near = self._members.near
            self._round = some(near, len(near), self._chance)
        while self._round:
            peer = self._round.pop()
            if peer in self._members.linked:
                self.probe(peer, now_s)
                return

    def _follow_up(self, probe: Probe, factor: int, now_s: float) -> None:
        record = self._members.find(probe.peer)
        if record is None or not record.member.is_here:
            del self._inquiries.probes[probe.peer]
            return
        match next_step(probe, record.heard_s, now_s, factor):
            case Step.ANSWERED:
                del self._inquiries.probes[probe.peer]
            case Step.RELAY:
                self._relay(probe, now_s)
            case Step.ACCUSE:
                del self._inquiries.probes[probe.peer]
                silence_s = now_s - probe.asked_s
                words = f"no answer within {silence_s:.2f} s, to us or to others who looked"
                self._members.accuse(probe.peer, words, now_s)
            case Step.WAIT:
                pass

    def _relay(self, probe: Probe, now_s: float) -> None:
        """Others look; so do we, on a link of its own."""
        self._inquiries.probes[probe.peer] = Probe(probe.peer, probe.asked_s, now_s)
        record = self._members.find(probe.peer)
        address = record.member.address if record else None
        others = [peer for peer in self._members.near if peer != probe.peer]
        for relay in some(others, RELAYS, self._chance):
            self._do(Tell(relay, Seek(probe.peer, address)))
        self._members.dial(probe.peer)

    # --- accusing --------------------------------------------------------------------------------

    def take_accusation(self, rumour: Rumour, now_s: float) -> None:
        """Passed on once from each accuser; who has a link to the accused tells it, and looks."""
        record = self._members.find(rumour.peer)
        if record is None or rumour.by is None or not record.member.is_here:
            return
        if rumour.incarnation < record.member.incarnation:
            return
        accused = self._inquiries.accused
        if not accused.add(rumour.peer, rumour.incarnation, rumour.by, now_s):
            return
        self._members.learn(rumour, now_s)
        self._members.spread(rumour)
        if rumour.peer in self._members.linked:
            self._do(Tell(rumour.peer, News((rumour,), None)))
            self.probe(rumour.peer, now_s)

    def _bury_the_silent(self, factor: int, now_s: float) -> None:
        members = len(self._members.here)
        for peer, accusation in self._inquiries.accused:
            record = self._members.find(peer)
            if record is None or not record.member.is_here:
                self._inquiries.accused.drop(peer)
            elif record.member.health is Health.SUSPECT:
                confirmations = len(accusation.by) - 1
                waited_s = now_s - accusation.since_s
                if waited_s >= suspicion_s(members, confirmations, factor):
                    words = f"accused for {waited_s:.2f} s, by {len(accusation.by)} devices"
                    self._members.bury(peer, words, now_s)
