"""Who waits for a plan: owners of sessions, in the order in which they asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from apps.planning.messages import ModelRef, WantReply, Wish


@dataclass(frozen=True, slots=True)
class _Waiting:
    wish: Wish
    reply: asyncio.Future[WantReply]


class WaitingRoom:
    """Each wish is answered once; an owner that no longer waits is passed over."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    @property
    def wishes(self) -> list[Wish]:
        """In the order in which they came."""
        return [one.wish for one in self._waiting if not one.reply.done()]

    async def enter(self, wish: Wish) -> WantReply:
        """Waits for the answer."""
        waiting = _Waiting(wish, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        return await waiting.reply

    def count(self, model: ModelRef) -> int:
        """How many wait for the model, held as it is there."""
        return sum(wish.model.is_held_like(model) for wish in self.wishes)

    def answer(self, reply: WantReply, to: Callable[[Wish], bool] = lambda wish: True) -> None:
        """The same reply to everybody whose wish it is meant for; they are done waiting."""
        answered = [one for one in self._waiting if to(one.wish)]
        self._waiting = [one for one in self._waiting if one not in answered]
        for one in answered:
            if not one.reply.done():
                one.reply.set_result(reply)
