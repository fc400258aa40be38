"""The leaving: devices that said they are about to go, and how far it is with the plans without
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from apps.planning.ledger import Ledger
from apps.planning.messages import LeaveReply, Outcome
from mesh.ids import PeerId


class Leaving:
    """As the leader knows it. Each is answered once, and planned without until it is gone."""

    def __init__(self) -> None:
        self._replies: dict[PeerId, asyncio.Future[LeaveReply]] = {}

    @property
    def out(self) -> dict[PeerId, str]:
        """Who no plan is made with any more, and why."""
        return dict.fromkeys(self._replies, "it is about to leave")

    async def enter(self, peer: PeerId) -> LeaveReply:
        """Waits for the answer; who asks again waits for the same one."""
        if peer not in self._replies:
            self._replies[peer] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._replies[peer])

    def settle(self, ledger: Ledger) -> None:
        """Those whom no plan in force needs any more may go; the ledger is told of the others."""
        waiting = frozenset(one for one, reply in self._replies.items() if not reply.done())
        ledger.leaving = waiting
        needed = frozenset[PeerId]().union(*map(ledger.parts_of, ledger.entries))
        for peer in waiting - needed:
            self._answer(peer, LeaveReply(Outcome.OK, "no plan needs it any more"))

    def refuse(self, peers: Iterable[PeerId], reason: str) -> None:
        """The others cannot do without these, and keep their plan until they are gone."""
        for peer in peers:
            self._answer(peer, LeaveReply(Outcome.IMPOSSIBLE, reason))

    def forget(self, peer: PeerId) -> None:
        """It is gone."""
        self._answer(peer, LeaveReply(Outcome.OK, "it has left"))
        self._replies.pop(peer, None)

    def stop(self) -> None:
        """This device no longer leads: they ask the next leader."""
        for peer in self._replies:
            self._answer(peer, LeaveReply(Outcome.RETRY, "this device no longer leads"))
        self._replies.clear()

    def _answer(self, peer: PeerId, reply: LeaveReply) -> None:
        future = self._replies.get(peer)
        if future is not None and not future.done():
            future.set_result(reply)
