"""A mesh of many devices, as one of them takes part in it: it pings a few neighbours, has others
look where one does not answer, passes on what it hears, and compares views.

Below FEW_MEMBERS all of this rests, but for answers to those who already count more of us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from mesh.accusations import Accusations
from mesh.effects import Dial, Effect, Tell
from mesh.ids import Address, Epoch, PeerId
from mesh.limits import (
    GOSSIP_FANOUT,
    GOSSIP_PAUSE_S,
    MAX_RUMOURS,
    NEED_LINK_S,
    NEIGHBOURS,
    PING_EVERY_S,
    RELAY_TIMEOUT_S,
    RELAYS,
    RETURN_EVERY_S,
    SWAP_EVERY_S,
    SYNC_EVERY_S,
    SYNC_TIMEOUT_S,
)
from mesh.membership import Membership, Record
from mesh.messages import (
    Ack,
    Crowded,
    Digest,
    Found,
    Health,
    News,
    Page,
    Ping,
    Rumour,
    Seek,
    Want,
)
from mesh.overlay import neighbours, some
from mesh.pages import digest_of, page_of
from mesh.rumours import Rumours
from mesh.swim import Probe, Step, is_crowd, next_step, suspicion_s, tellings


class Hands(Protocol):
    """The core, as the crowd uses it."""

    table: Membership
    linked: set[PeerId]

    @property
    def here(self) -> frozenset[PeerId]: ...
    @property
    def circle(self) -> frozenset[PeerId]: ...
    @property
    def own_record(self) -> Record: ...
    @property
    def news_epoch(self) -> Epoch | None: ...

    def hear_of(self, peer: PeerId, incarnation: int, now_s: float) -> None: ...
    def learn(self, rumour: Rumour, now_s: float) -> None: ...
    def accuse(self, peer: PeerId, reason: str, now_s: float) -> None: ...
    def bury(self, peer: PeerId, reason: str, now_s: float) -> None: ...
    def follow(self, epoch: Epoch, now_s: float) -> None: ...


class Crowd:
    """`chance` is 0..1, anew with each call."""

    def __init__(
        self, hands: Hands, do: Callable[[Effect], None], chance: Callable[[], float]
    ) -> None:
        self.is_on = False
        self.needed: dict[PeerId, float] = {}  # who is asked something, and until when to keep it
        self.neighbours: frozenset[PeerId] = frozenset()
        self._hands = hands
        self._do = do
        self._chance = chance
        self._rumours = Rumours()
        self._epoch_tellings = 0
        self._is_fresh = False  # something is to be told that nobody was told yet
        self._accused = Accusations()
        self._probes: dict[PeerId, Probe] = {}
        self._round: list[PeerId] = []
        self._sought: dict[PeerId, dict[PeerId, float]] = {}  # by whom, until when
        self._syncing: tuple[PeerId, float] | None = None
        self._ping_s = self._sync_s = self._swap_s = self._return_s = 0.0
        self._gossip_s = -GOSSIP_PAUSE_S
        self._number = 0

    # --- what the core tells ---------------------------------------------------------------------

    def count(self, members: int) -> None:
        self.is_on = is_crowd(members, was_crowd=self.is_on)

    def spread(self, rumour: Rumour) -> None:
        """Something changed; the others should know."""
        if self.is_on:
            self._rumours.add(rumour, tellings(len(self._hands.here)))
            self._is_fresh = True

    def epoch_changed(self) -> None:
        self._epoch_tellings = tellings(len(self._hands.here))
        self._is_fresh = True

    def accuse(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        """This device has looked, and heard nothing: the count begins, or goes on."""
        self._accused.add(peer, incarnation, self._hands.table.me.peer, now_s, anew=True)

    def cleared(self, peer: PeerId) -> None:
        """It spoke again, or is gone: a later accusation starts anew."""
        self._probes.pop(peer, None)
        self._accused.clear(peer)

    def heard(self, peer: PeerId, incarnation: int, now_s: float) -> None:
        """A sign of life: for those too who asked us to look."""
        for asker, until_s in self._sought.pop(peer, {}).items():
            if now_s <= until_s:
                self._do(Tell(asker, Found(peer, incarnation)))

    def greet(self, peer: PeerId) -> None:
        if self.is_on:
            self._do(Tell(peer, digest_of(self._records())))

    def link_lost(self, peer: PeerId, now_s: float) -> None:
        """Its process may be gone, or only the link: others look at once, and so do we."""
        self._probes[peer] = Probe(peer, now_s)
        self._relay(self._probes[peer], now_s)

    def slept(self) -> None:
        """We did not run: nobody is to blame for what we did not hear."""
        self._probes.clear()
        self._accused.clear_all()

    # --- time ------------------------------------------------------------------------------------

    def tick(self, factor: int, now_s: float) -> None:
        """`factor` is our own health's: how much longer we wait than a healthy device."""
        for probe in list(self._probes.values()):
            self._follow_up(probe, factor, now_s)
        self._bury_the_silent(factor, now_s)
        if now_s >= self._ping_s:
            self._ping_s = now_s + PING_EVERY_S * factor
            self._ping_next(now_s)
        self._tend(now_s)
        if now_s >= self._sync_s:
            self._sync_s = now_s + SYNC_EVERY_S * (0.5 + self._chance())
            for peer in some(self._near(), 1, self._chance):
                self._do(Tell(peer, digest_of(self._records())))
        self._gossip(now_s)

    def flush(self, now_s: float) -> None:
        """News goes out at once, and again with every tick until it was told often enough. In a
        storm of news what comes meanwhile waits, to travel together.
        """
        if self._is_fresh and self.is_on and now_s - self._gossip_s >= GOSSIP_PAUSE_S:
            self._gossip(now_s)

    # --- messages --------------------------------------------------------------------------------

    def take(self, peer: PeerId, message: Crowded, now_s: float) -> None:
        match message:
            case Ping(number, incarnation, news):
                self._hands.hear_of(peer, incarnation, now_s)
                self._take_news(news, now_s)
                self._do(Tell(peer, Ack(number, self._hands.table.me.incarnation, self._news())))
            case Ack(_, incarnation, news):
                self._hands.hear_of(peer, incarnation, now_s)
                self._take_news(news, now_s)
            case News():
                self._take_news(message, now_s)
            case Found(found, incarnation):
                self._hands.hear_of(found, incarnation, now_s)
            case Seek(sought, address):
                self._seek(sought, address, peer, now_s)
            case Digest():
                if message != digest_of(self._records()) and self._may_sync(now_s):
                    self._want(peer, None, now_s)
            case Want(after):
                self._do(Tell(peer, page_of(self._records(), after)))
            case Page(rumours, more):
                for rumour in rumours:
                    self._take_entry(rumour, peer, now_s)
                if self._syncing is not None and self._syncing[0] == peer:
                    self._syncing = None
                    if more and rumours:
                        self._want(peer, rumours[-1].peer, now_s)

    def ping(self, peer: PeerId, now_s: float) -> None:
        self._number += 1
        me = self._hands.table.me
        self._do(Tell(peer, Ping(self._number, me.incarnation, self._news())))

    # --- probing ---------------------------------------------------------------------------------

    def _near(self) -> list[PeerId]:
        here = self._hands.table.records
        return sorted(
            peer for peer in self._hands.linked if peer in here and here[peer].member.is_here
        )

    def _ping_next(self, now_s: float) -> None:
        """One member: each of those linked in turn, the turns by chance."""
        if not self._round:
            near = self._near()
            self._round = some(near, len(near), self._chance)
        while self._round:
            peer = self._round.pop()
            if peer in self._hands.linked:
                self._probe(peer, now_s)
                return

    def _probe(self, peer: PeerId, now_s: float) -> None:
        if peer in self._probes:
            return
        self._probes[peer] = Probe(peer, now_s)
        if peer in self._hands.linked:
            self.ping(peer, now_s)
        else:
            self._dial(peer)

    def _follow_up(self, probe: Probe, factor: int, now_s: float) -> None:
        record = self._hands.table.records.get(probe.peer)
        if record is None or not record.member.is_here:
            del self._probes[probe.peer]
            return
        match next_step(probe, record.heard_s, now_s, factor):
            case Step.ANSWERED:
                del self._probes[probe.peer]
            case Step.RELAY:
                self._relay(probe, now_s)
            case Step.ACCUSE:
                del self._probes[probe.peer]
                silence_s = now_s - probe.asked_s
                words = f"no answer within {silence_s:.2f} s, to us or to others who looked"
                self._hands.accuse(probe.peer, words, now_s)
            case Step.WAIT:
                pass

    def _relay(self, probe: Probe, now_s: float) -> None:
        """Others look; so do we, on a link of its own."""
        self._probes[probe.peer] = Probe(probe.peer, probe.asked_s, now_s)
        record = self._hands.table.records.get(probe.peer)
        address = record.member.address if record else None
        others = [peer for peer in self._near() if peer != probe.peer]
        for relay in some(others, RELAYS, self._chance):
            self._do(Tell(relay, Seek(probe.peer, address)))
        self._dial(probe.peer)

    def _seek(self, sought: PeerId, address: Address | None, asker: PeerId, now_s: float) -> None:
        record = self._hands.table.records.get(sought)
        if record is None or sought == asker:
            return
        self._sought.setdefault(sought, {})[asker] = now_s + RELAY_TIMEOUT_S
        if sought in self._hands.linked:
            self.ping(sought, now_s)
        elif address is not None:
            self._do(Dial(sought, address))

    def _bury_the_silent(self, factor: int, now_s: float) -> None:
        members = len(self._hands.here)
        for peer, accusation in self._accused:
            record = self._hands.table.records.get(peer)
            if record is None or not record.member.is_here:
                self._accused.drop(peer)
            elif record.member.health is Health.SUSPECT:
                confirmations = len(accusation.by) - 1
                waited_s = now_s - accusation.since_s
                if waited_s >= suspicion_s(members, confirmations, factor):
                    words = f"accused for {waited_s:.2f} s, by {len(accusation.by)} devices"
                    self._hands.bury(peer, words, now_s)

    # --- telling ---------------------------------------------------------------------------------

    def _news(self) -> News:
        return News(self._rumours.take(MAX_RUMOURS // 4), self._hands.news_epoch)

    def _gossip(self, now_s: float) -> None:
        self._is_fresh, self._gossip_s = False, now_s
        for peer in some(self._near(), GOSSIP_FANOUT, self._chance):
            if self._rumours or self._epoch_tellings > 0:
                self._epoch_tellings -= 1
                news = News(self._rumours.take(MAX_RUMOURS), self._hands.news_epoch)
                self._do(Tell(peer, news))

    def _take_news(self, news: News, now_s: float) -> None:
        for rumour in news.rumours:
            if rumour.health is Health.SUSPECT and rumour.peer != self._hands.table.me.peer:
                self._take_accusation(rumour, now_s)
            else:
                self._hands.learn(rumour, now_s)
        if news.epoch is not None:
            self._hands.follow(news.epoch, now_s)

    def _take_accusation(self, rumour: Rumour, now_s: float) -> None:
        """Passed on once from each accuser; who has a link to the accused tells it, and looks."""
        record = self._hands.table.records.get(rumour.peer)
        if record is None or rumour.by is None or not record.member.is_here:
            return
        if rumour.incarnation < record.member.incarnation:
            return
        if not self._accused.add(rumour.peer, rumour.incarnation, rumour.by, now_s):
            return
        self._hands.learn(rumour, now_s)
        self.spread(rumour)
        if rumour.peer in self._hands.linked:
            self._do(Tell(rumour.peer, News((rumour,), None)))
            self._probe(rumour.peer, now_s)

    # --- comparing views -------------------------------------------------------------------------

    def _take_entry(self, rumour: Rumour, teller: PeerId, now_s: float) -> None:
        """One line of another's view. Whom it holds dead may be dead for its side of a cut alone:
        that is an accusation, which the member can refute.
        """
        known = self._hands.table.records.get(rumour.peer)
        if rumour.health is Health.DEAD and known is not None and known.member.is_here:
            accusation = replace(rumour, health=Health.SUSPECT, by=teller)
            self._take_accusation(accusation, now_s)
        else:
            self._hands.learn(rumour, now_s)

    def _records(self) -> dict[PeerId, Record]:
        """Of all, this device included."""
        table = self._hands.table
        return {**table.records, table.me.peer: self._hands.own_record}

    def _may_sync(self, now_s: float) -> bool:
        return self._syncing is None or now_s >= self._syncing[1]

    def _want(self, peer: PeerId, after: PeerId | None, now_s: float) -> None:
        self._syncing = peer, now_s + SYNC_TIMEOUT_S
        self._do(Tell(peer, Want(after)))

    # --- links -----------------------------------------------------------------------------------

    def _tend(self, now_s: float) -> None:
        """Keeps NEIGHBOURS dialled, and looks for the gone now and then."""
        table, here = self._hands.table, self._hands.here
        swap = now_s >= self._swap_s
        if swap:
            self._swap_s = now_s + SWAP_EVERY_S * (0.5 + self._chance())
        before = self.neighbours
        if swap or len(before) < NEIGHBOURS or not before <= here:
            others = here - {table.me.peer}
            self.neighbours = neighbours(before, others, self._chance, swap=swap)
        for peer in sorted(self.neighbours - before):
            self._probe(peer, now_s)
        self.needed = {peer: until for peer, until in self.needed.items() if until > now_s}
        if now_s >= self._return_s:
            self._return_s = now_s + RETURN_EVERY_S * len(here) * (0.5 + self._chance())
            gone = sorted(p for p, record in table.records.items() if not record.member.is_here)
            for peer in some(gone, 1, self._chance):
                self._dial(peer)

    def meet(self) -> None:
        """Whoever is to beat each other has a link: of a few, everybody with everybody."""
        for peer in sorted(self._hands.circle - self._hands.linked - {self._hands.table.me.peer}):
            self._dial(peer)

    def need(self, peer: PeerId, now_s: float) -> None:
        """Somebody here asks it something: a link is made, and kept for a while."""
        self.needed[peer] = now_s + NEED_LINK_S
        if peer not in self._hands.linked:
            self._dial(peer)

    def _dial(self, peer: PeerId) -> None:
        record = self._hands.table.records.get(peer)
        if record is not None and record.member.address is not None:
            self._do(Dial(peer, record.member.address))
