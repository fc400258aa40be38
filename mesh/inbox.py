"""Where each message from a linked peer goes: to the core, to the requests, to the hints."""

from __future__ import annotations

from collections.abc import Callable

from mesh.control_link import ControlLink
from mesh.control_links import ControlLinks, reachable
from mesh.core import Core
from mesh.errors import LinkClosed, ProtocolError
from mesh.hints import Hints
from mesh.ids import PeerId
from mesh.messages import (
    Ack,
    Beat,
    Digest,
    Found,
    Health,
    Hello,
    Lead,
    Leave,
    Message,
    News,
    Notice,
    Page,
    Park,
    Ping,
    Reply,
    Request,
    Seek,
    Sighting,
    Vote,
    VoteRequest,
    Want,
    Yield,
    encode_message,
)
from mesh.nursery import Nursery
from mesh.requests import Requests


class Inbox:
    """Takes a message without ever waiting; what takes time runs in a task of the node."""

    def __init__(
        self,
        core: Core,
        requests: Requests,
        hints: Hints,
        links: ControlLinks,
        nursery: Nursery,
        is_used: Callable[[PeerId], bool],
    ) -> None:
        """`is_used`: whether the link with a peer should stay."""
        self._core = core
        self._requests = requests
        self._hints = hints
        self._links = links
        self._nursery = nursery
        self._is_used = is_used

    def take(self, link: ControlLink, message: Message, now_s: float) -> None:
        """Raises ProtocolError for a message that has no place here."""
        match message:
            case Beat():
                link.incarnation = max(link.incarnation, message.incarnation)
                self._core.take_beat(link.hello, reachable(link), message, now_s)
                self.learn(message.sightings, now_s)
            case Ping() | Ack():
                link.incarnation = max(link.incarnation, message.incarnation)
                self._core.take_crowded(link.peer, message, now_s)
            case News() | Seek() | Found() | Digest() | Want() | Page():
                self._core.take_crowded(link.peer, message, now_s)
            case Park():
                if not self._is_used(link.peer) and self._links.close(link.peer, "parked"):
                    self._core.parked(link.peer)
            case Leave(incarnation):
                self._core.take_leave(link.peer, incarnation, now_s)
            case Hello():
                raise ProtocolError("a second Hello on one link")
            case VoteRequest() | Vote() | Lead() | Yield():
                if self._core.view.is_here(link.peer):
                    self._take_election(link, message, now_s)
            case Request() | Reply() | Notice():
                self._take_request(link, message)

    def learn(self, sightings: tuple[Sighting, ...], now_s: float) -> None:
        """Addresses that a peer knows; of one it holds alive, the news may be fresh. In a crowd
        nobody has links with all.
        """
        if self._core.is_crowd:
            return
        for sighting in sightings:
            if sighting.address is not None and sighting.health is Health.ALIVE:
                self._hints.add(sighting.address, sighting.peer, now_s)

    def _take_election(
        self, link: ControlLink, message: VoteRequest | Vote | Lead | Yield, now_s: float
    ) -> None:
        match message:
            case VoteRequest():
                self._core.take_vote_request(link.peer, message, now_s)
            case Vote():
                self._core.take_vote(link.peer, message, now_s)
            case Lead():
                self._core.take_lead(link.peer, message, now_s)
            case Yield():
                self._core.take_yield(link.peer, message, now_s)

    def _take_request(self, link: ControlLink, message: Request | Reply | Notice) -> None:
        if isinstance(message, Reply):
            self._requests.take_reply(link.peer, message)
            return
        here = self._core.view.is_here(link.peer)
        if isinstance(message, Notice):
            if here:
                self._nursery.start(self._requests.take_notice(link.peer, message))
        elif here:
            self._nursery.start(
                self._requests.serve(link.peer, message, lambda data: self._send_back(link, data))
            )
        else:
            text = "you are not in my view of the mesh; greet me with a newer incarnation"
            link.post(encode_message(Reply(message.number, text, None)))

    async def _send_back(self, link: ControlLink, data: bytes) -> None:
        """On the link the request came by, or on the one that took its place."""
        if not link.closed:
            await link.send(data)
            return
        current = await self._links.wait(link.peer)
        if current.hello.started_as != link.hello.started_as:
            raise LinkClosed("the device that asked has restarted")
        await current.send(data)
