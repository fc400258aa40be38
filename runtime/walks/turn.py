"""One turn of a stage that is shared: pieces out and in, as the worker's thread sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.tensor_frame import DType
from planner.plan import Wire
from runtime.mailbox import SILENCE_TIMEOUT_S, Mailbox
from runtime.walks.exchange import Key
from runtime.walks.wire import DTYPES, pack, unpack

PASS_NUMBERS: Final = 1 << 15  # between the pieces of one pass and those of the next
END: Final = (-1, -1)  # the key of what ends a turn before its time


class Piece(NamedTuple):
    """Rows on their way to a device."""

    to: int
    number: int
    dtype: DType
    rows: Tensor  # packed


@dataclass(frozen=True, slots=True)
class Letter:
    """A piece as it came."""

    rows: Tensor  # packed


@dataclass(slots=True)
class TurnExchange:
    """See `runtime.walks.exchange.Exchange`."""

    turn: int
    me: int
    wires: list[Wire]  # of the link to each device; widened here where numbers did not fit
    letters: Mailbox[tuple[int, Key], Letter]
    post: Callable[[Sequence[Piece]], None]  # all that goes at once: each wakes the event loop
    _first: int = field(default=-PASS_NUMBERS, init=False)

    @property
    def count(self) -> int:
        return len(self.wires)

    def start_pass(self) -> None:
        """The numbers of the next pieces begin anew."""
        self._first += PASS_NUMBERS

    def send(self, number: int, rows: Mapping[int, Tensor], *, exact: bool = False) -> None:
        packed: dict[tuple[int, Wire], tuple[DType, Tensor]] = {}  # what several get, once
        pieces = []
        for to, numbers in rows.items():
            wire = Wire.FP32 if exact else self.wires[to]
            key = (id(numbers), wire)
            if key not in packed:
                packed[key] = pack(numbers, wire)
            dtype, narrow = packed[key]
            if dtype is not DTYPES[wire]:  # too large for the narrow type, and so may others be
                self.wires[to] = Wire.FP32
            pieces.append(Piece(to, self._first + number, dtype, narrow))
        if pieces:
            self.post(pieces)

    def take(self, origin: int, number: int, shape: tuple[int, int]) -> Tensor:
        key = (self.turn, (origin, self._first + number))
        letter = self.letters.take(key, SILENCE_TIMEOUT_S, self._end)
        rows = unpack(letter.rows)
        if rows.shape != shape:
            raise GenerationFailed(
                f"device {origin} of the stage sent {list(rows.shape)} in place of {list(shape)}"
            )
        return rows

    def wait(self, wanted: Sequence[Sequence[Key]]) -> int:
        letters = [
            [(self.turn, (origin, self._first + number)) for origin, number in keys]
            for keys in wanted
        ]
        return self.letters.wait(letters, SILENCE_TIMEOUT_S, self._end)

    @property
    def _end(self) -> tuple[int, Key]:
        return end_of(self.turn)


def end_of(turn: int) -> tuple[int, Key]:
    """Where the word lies that a turn is given up."""
    return turn, END
