"""Several devices of one stage in one process, a thread each, with memory for a wire."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from mesh.ids import SessionId
from planner.plan import Wire
from runtime.mailbox import Mailbox
from runtime.walks.exchange import Key
from runtime.walks.turn import Letter, Piece, TurnExchange

T = TypeVar("T")


def exchanges(count: int, wire: Wire = Wire.FP32, turn: int = 1) -> list[TurnExchange]:
    """One for each of `count` devices; what one sends lies in the mailbox of the other at once."""
    boxes: list[Mailbox[tuple[int, Key], Letter]] = [
        Mailbox(1 << 16, 1 << 30) for _ in range(count)
    ]

    def post_of(me: int) -> Callable[[Sequence[Piece]], None]:
        def post(pieces: Sequence[Piece]) -> None:
            for to, number, _, rows in pieces:
                boxes[to].put((turn, (me, number)), Letter(rows.clone()), rows.nbytes)

        return post

    return [TurnExchange(turn, me, [wire] * count, boxes[me], post_of(me)) for me in range(count)]


def together(work: Sequence[Callable[[], T]]) -> list[T]:
    """Runs each in a thread of its own; what they return, or the first error."""
    barrier = threading.Barrier(len(work))

    def begin(one: Callable[[], T]) -> T:
        barrier.wait(10)
        with torch.inference_mode():
            return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result(60) for future in [pool.submit(begin, one) for one in work]]


def session(number: int) -> SessionId:
    return SessionId(f"{number:032x}")
