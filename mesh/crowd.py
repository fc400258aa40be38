"""A mesh of many devices, as one of them takes part in it: it has links with a few neighbours,
answers them, takes and gives news, and compares views.

Below FEW_MEMBERS all of this rests, but for answers to those who already count more of us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mesh.effects import Effect, Tell
from mesh.electors import Electors
from mesh.gossip import Gossip
from mesh.ids import Epoch, PeerId
from mesh.limits import (
    NEED_LINK_S,
    NEIGHBOURS,
    RETURN_EVERY_S,
    SWAP_EVERY_S,
    SYNC_EVERY_S,
    SYNC_TIMEOUT_S,
)
from mesh.members import Members
from mesh.membership import Record
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
from mesh.probing import Probing


class Crowd:
    """`chance` is 0..1, anew with each call."""

    def __init__(
        self,
        members: Members,
        electors: Electors,
        probing: Probing,
        gossip: Gossip,
        do: Callable[[Effect], None],
        chance: Callable[[], float],
    ) -> None:
        self._needed: dict[PeerId, float] = {}  # who is asked something, and until when to keep it
        self._neighbours: frozenset[PeerId] = frozenset()
        self._members = members
        self._electors = electors
        self._probing = probing
        self._gossip = gossip
        self._do = do
        self._chance = chance
        self._syncing: tuple[PeerId, float] | None = None
        self._sync_s = self._swap_s = self._return_s = 0.0

    def greet(self, peer: PeerId) -> None:
        if self._members.is_crowd:
            self._do(Tell(peer, digest_of(self._records())))

    def follow(self, epoch: Epoch, now_s: float) -> None:
        """Others follow this epoch."""
        if self._electors.follow(epoch, now_s):
            self.need(epoch.leader, now_s)

    def keeps(self, peer: PeerId) -> bool:
        """Whether the link with `peer` is of use."""
        wanted = peer in self._neighbours or peer in self._needed
        return wanted or peer in self._electors.circle.members

    # --- time ------------------------------------------------------------------------------------

    def tick(self, factor: int, now_s: float) -> None:
        """`factor` is our own health's: how much longer we wait than a healthy device."""
        self._probing.tick(factor, now_s)
        self._tend(now_s)
        if now_s >= self._sync_s:
            self._sync_s = now_s + SYNC_EVERY_S * (0.5 + self._chance())
            for peer in some(self._members.near, 1, self._chance):
                self._do(Tell(peer, digest_of(self._records())))
        self._gossip.tell(self._members.near, now_s)

    def flush(self, now_s: float) -> None:
        """Between two ticks, for what is too new to wait."""
        if self._members.is_crowd and self._gossip.is_due(now_s):
            self._gossip.tell(self._members.near, now_s)

    # --- messages --------------------------------------------------------------------------------

    def take(self, peer: PeerId, message: Crowded, now_s: float) -> None:
        match message:
            case Ping(number, incarnation, news):
                self._members.hear_of(peer, incarnation, now_s)
                self._take_news(news, now_s)
                answer = Ack(number, self._members.me.incarnation, self._gossip.news())
                self._do(Tell(peer, answer))
            case Ack(_, incarnation, news):
                self._members.hear_of(peer, incarnation, now_s)
                self._take_news(news, now_s)
            case News():
                self._take_news(message, now_s)
            case Found(found, incarnation):
                self._members.hear_of(found, incarnation, now_s)
            case Seek(sought, address):
                self._probing.seek(sought, address, peer, now_s)
            case Digest():
                if message != digest_of(self._records()) and self._may_sync(now_s):
                    self._want(peer, None, now_s)
            case Want(after):
                self._do(Tell(peer, page_of(self._records(), after)))
            case Page():
                self._take_page(message, peer, now_s)

    def _take_news(self, news: News, now_s: float) -> None:
        for rumour in news.rumours:
            if rumour.health is Health.SUSPECT and rumour.peer != self._members.me.peer:
                self._probing.take_accusation(rumour, now_s)
            else:
                self._members.learn(rumour, now_s)
        if news.epoch is not None:
            self.follow(news.epoch, now_s)

    # --- comparing views -------------------------------------------------------------------------

    def _take_page(self, page: Page, peer: PeerId, now_s: float) -> None:
        for rumour in page.rumours:
            self._take_entry(rumour, peer, now_s)
        if self._syncing is not None and self._syncing[0] == peer:
            self._syncing = None
            if page.more and page.rumours:
                self._want(peer, page.rumours[-1].peer, now_s)

    def _take_entry(self, rumour: Rumour, teller: PeerId, now_s: float) -> None:
        """One line of another's view. Whom it holds dead may be dead for its side of a cut alone:
        that is an accusation, which the member can refute.
        """
        known = self._members.find(rumour.peer)
        if rumour.health is Health.DEAD and known is not None and known.member.is_here:
            accusation = replace(rumour, health=Health.SUSPECT, by=teller)
            self._probing.take_accusation(accusation, now_s)
        else:
            self._members.learn(rumour, now_s)

    def _records(self) -> dict[PeerId, Record]:
        """Of all, this device included."""
        members = self._members
        return {**members.table.records, members.me.peer: members.own_record}

    def _may_sync(self, now_s: float) -> bool:
        return self._syncing is None or now_s >= self._syncing[1]

    def _want(self, peer: PeerId, after: PeerId | None, now_s: float) -> None:
        self._syncing = peer, now_s + SYNC_TIMEOUT_S
        self._do(Tell(peer, Want(after)))

    # --- links -----------------------------------------------------------------------------------

    def _tend(self, now_s: float) -> None:
        """Keeps NEIGHBOURS dialled, and looks for the gone now and then."""
        table, here = self._members.table, self._members.here
        swap = now_s >= self._swap_s
        if swap:
            self._swap_s = now_s + SWAP_EVERY_S * (0.5 + self._chance())
        before = self._neighbours
        if swap or len(before) < NEIGHBOURS or not before <= here:
            others = here - {table.me.peer}
            self._neighbours = neighbours(before, others, self._chance, swap=swap)
        for peer in sorted(self._neighbours - before):
            self._probing.probe(peer, now_s)
        self._needed = {peer: until for peer, until in self._needed.items() if until > now_s}
        if now_s >= self._return_s:
            self._return_s = now_s + RETURN_EVERY_S * len(here) * (0.5 + self._chance())
            gone = sorted(p for p, record in table.records.items() if not record.member.is_here)
            for peer in some(gone, 1, self._chance):
                self._members.dial(peer)

    def meet(self) -> None:
        """Whoever is to beat each other has a link: of a few, everybody with everybody."""
        circle = self._electors.circle.members
        for peer in sorted(circle - self._members.linked - {self._members.me.peer}):
            self._members.dial(peer)

    def need(self, peer: PeerId, now_s: float) -> None:
        """Somebody here asks it something: a link is made, and kept for a while."""
        self._needed[peer] = now_s + NEED_LINK_S
        if peer not in self._members.linked:
            self._members.dial(peer)
