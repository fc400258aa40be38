"""What the core decided, carried out on links: what is told, cut, dialled, beaten and parked.

Time is the running loop's, as everywhere in the shell.
"""

from __future__ import annotations

import asyncio

from mesh.control_links import ControlLinks
from mesh.core import Core
from mesh.effects import Cut, Dial, Emit, Forget, Tell
from mesh.events import LinkDown
from mesh.hints import Hints
from mesh.ids import PeerId
from mesh.limits import KEEP_LINK_S
from mesh.messages import Message, Park, encode_message
from mesh.requests import Requests
from mesh.subscribers import Subscribers


class Hands:
    """Whoever hands something in to the core calls `carry_out` afterwards."""

    def __init__(
        self,
        core: Core,
        links: ControlLinks,
        hints: Hints,
        requests: Requests,
        subscribers: Subscribers,
    ) -> None:
        self._core = core
        self._links = links
        self._hints = hints
        self._requests = requests
        self._subscribers = subscribers
        self._wake: asyncio.TimerHandle | None = None

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def close(self) -> None:
        """No election is gone on with."""
        if self._wake is not None:
            self._wake.cancel()

    def carry_out(self) -> None:
        """Does what the core decided since the last time."""
        for effect in self._core.take_effects():
            match effect:
                case Tell(peer, message):
                    self.tell(peer, message)
                case Emit(event):
                    self._subscribers.tell(event)
                case Cut(peer, reason):
                    self._requests.fail(peer, f"{peer.short} is gone: {reason}")
                    if self._links.close(peer, reason):
                        self._subscribers.tell(LinkDown(self._now_s, reason, peer))
                    self.look_for(peer)
                case Forget(peer, reason):
                    self._requests.fail(peer, f"{peer.short}: {reason}")
                case Dial(peer, address):
                    self._hints.add(address, peer, self._now_s)
        if self._core.take_beat_due():
            self.send_beats()
        self._set_wake()

    def tell(self, peer: PeerId | None, message: Message) -> None:
        """To everybody linked if None."""
        data = encode_message(message)
        if peer is None:
            for link in self._links.all:
                link.post(data)
        elif (link_to := self._links.find(peer)) is not None:
            link_to.post(data)

    def send_beats(self) -> None:
        expected, asking = self._core.beaten(self._now_s)
        for peers, expects in ((expected, True), (asking, False)):
            links = [link for link in self._links.all if link.peer in peers]
            data = encode_message(self._core.beat(expects=expects)) if links else b""
            for link in links:
                link.post_beat(data)

    def park_links(self) -> None:
        """Asks for the end of the links that we dialled and have no more use for."""
        for link in self._links.all:
            is_old = self._now_s - link.since_s > KEEP_LINK_S
            if is_old and link.channel.dialled and not self.uses(link.peer):
                self._hints.release(link.peer)
                link.park(self._now_s)
                link.post(encode_message(Park()))

    def uses(self, peer: PeerId) -> bool:
        """Whether the link with `peer` should stay."""
        return self._core.keeps(peer) or self._requests.is_busy_with(peer)

    def look_for(self, peer: PeerId) -> None:
        """Dials where the peer was; one that always came to us is looked for all the same. The
        gone of a crowd are looked for by turns, by all.
        """
        member = self._core.view.find(peer)
        if self._core.is_crowd and (member is None or not member.is_here):
            self._hints.release(peer)
            return
        if member is not None and member.address is not None:
            self._hints.add(member.address, peer, self._now_s)
        self._hints.lost(peer, self._now_s)

    def _set_wake(self) -> None:
        when_s = self._core.wake_s
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if when_s is not None:
            self._wake = asyncio.get_running_loop().call_at(when_s, self._election_wake)

    def _election_wake(self) -> None:
        self._core.wake(self._now_s)
        self.carry_out()
