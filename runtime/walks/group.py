"""A group: this device's end of a stage that several devices share under one plan.

The lead numbers the turns and orders each of them; all devices then walk through the layers
together. What comes for a turn that has not begun here yet is kept: another device may be ahead.
Frames come in through the event loop, the walk waits for them in the worker's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from mesh.errors import GenerationFailed, PotluckError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, SessionId
from mesh.limits import MAX_SESSIONS
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan, Stage
from runtime.assembly import Assembly
from runtime.chores import Chores
from runtime.mailbox import Mailbox
from runtime.stage import Slice
from runtime.walks.exchange import Key
from runtime.walks.order import WIDTH, from_bytes, to_bytes
from runtime.walks.shared import Shared
from runtime.walks.turn import Letter, Piece, TurnExchange, end_of
from runtime.walks.wire import check_packed, numbers_in

_log = logging.getLogger(__name__)

# Of pieces that nobody has taken yet: what a device that is one turn ahead may have sent.
MAX_LETTERS: Final = 1 << 14
MAX_LETTER_BYTES: Final = 1 << 28
MAX_REASON_BYTES: Final = 300
_NUMBER_BYTES: Final = 4  # of an order: token ids are int32, all else is fp32
_ENTRY_ROWS: Final = 1  # what an order says of a slice takes less than a row of WIDTH bytes
_END_ROWS: Final = 2  # its length and field names, and a last row that is not full
MAX_ORDERS: Final = 4  # that wait here; a lead orders a turn when the one before is over

Send = Callable[[PeerId, FrameHeader, Tensor], None]


@dataclass(frozen=True, slots=True)
class Order:
    """A turn that the lead has asked for."""

    turn: int
    slices: list[Slice]


@dataclass(slots=True)
class _Incoming:
    """What one peer is sending."""

    assembly: Assembly | None = None
    turn: int = 0  # of the pieces that came last
    numbers: set[int] = field(default_factory=set)  # of that turn's pieces that have come

    def note(self, turn: int, number: int) -> None:
        """A piece has come. Raises ProtocolError for one that came before, taken or not."""
        if turn != self.turn:
            self.turn, self.numbers = turn, set()
        if number in self.numbers:
            raise ProtocolError("the same piece of a turn came twice")
        self.numbers.add(number)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a turn of this stage may look like."""

    most_rows: int  # of all its slices
    most_width: int  # of a piece, in numbers
    width: int  # of the rows that are ordered, where they are not tokens


class Group:
    """Of one plan. Everything but the exchange of a turn belongs to the event loop."""

    def __init__(
        self,
        plan: Plan,
        stage: Stage,
        me: PeerId,
        send: Send,
        bounds: Bounds,
        chores: Chores | None = None,
    ) -> None:
        """`chores` are done while a turn waits."""
        self.stage = stage
        self.orders: list[Order] = []  # the oldest first; only on a device that is not the lead
        self._plan = plan
        self._peers = [share.device for share in stage.shares]
        self._me = self._peers.index(me)
        self._send = send
        self._bounds = bounds
        self._turn = 0
        self._letters: Mailbox[tuple[int, Key], Letter] = Mailbox(
            MAX_LETTERS, MAX_LETTER_BYTES, chores
        )
        self._incoming = {peer: _Incoming() for peer in self._peers}
        self._wires = [stage.wire] * len(self._peers)  # a link that was too narrow has a wider one

    @property
    def is_lead(self) -> bool:
        return self._me == 0

    @contextmanager
    def leading(self, slices: Sequence[Slice]) -> Iterator[Shared]:
        """On the lead: orders a turn of all devices; this device's walk through it."""
        assert self.is_lead, "only the lead orders turns"
        packed = to_bytes(slices)
        turn = self._turn + 1
        for peer in self._peers[1:]:
            self._send(peer, self._header(turn, Kind.ORDER, DType.UINT8, packed), packed)
        try:
            yield self._begin(turn)
        except Exception as error:  # whatever it is, the others are not to wait for it
            self._give_up(turn, error)
            raise

    @contextmanager
    def following(self, order: Order) -> Iterator[Shared]:
        """On the others: this device's walk through a turn that was ordered. What goes wrong is
        the lead's to tell.
        """
        try:
            yield self._begin(order.turn)
        except Exception as error:  # as well
            if not isinstance(error, PotluckError):  # exhausted memory, a bad operand, a bug
                _log.error("a turn of a stage failed", exc_info=error)
            self._give_up(order.turn, error)

    def _give_up(self, turn: int, error: Exception) -> None:
        """This device cannot do a turn: the others need not wait for it."""
        words = str(error) if isinstance(error, PotluckError) else repr(error)
        reason = words.encode()[:MAX_REASON_BYTES] or b"?"
        row = torch.frombuffer(bytearray(reason), dtype=torch.uint8)[None]
        is_over = int(isinstance(error, StaleEpoch))
        header = self._header(turn, Kind.GIVEN_UP, DType.UINT8, row, is_over)
        for index, peer in enumerate(self._peers):
            if index != self._me:
                self._send(peer, header, row)

    def lost(self, error: PotluckError) -> None:
        """What was sent or came in this turn is not whole: whoever waits for it here is told so."""
        self._letters.fail(end_of(self._turn), error)

    def abandon(self, error: PotluckError) -> None:
        """A device of the stage is gone, or the plan is over: nobody waits for anything more."""
        self._letters.abandon(error)
        self.orders.clear()

    def has(self, peer: PeerId) -> bool:
        """Whether a device is one of the stage's."""
        return peer in self._incoming

    # --- what comes -------------------------------------------------------------------------------

    def on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        """Raises ProtocolError for what no device of the stage would send; then the turn fails."""
        try:
            self._take(peer, frame)
        except ProtocolError as error:
            self.lost(GenerationFailed(f"{peer.short} sent: {error}"))
            raise

    def _take(self, peer: PeerId, frame: TensorFrame) -> None:
        header = frame.header
        if peer not in self._incoming or peer == self._peers[self._me]:
            raise ProtocolError(f"{peer.short} has no share of this stage")
        turn = int(header.session, 16)
        if turn < self._turn:
            return  # of a turn that was given up here
        self._check(peer, header)
        coming = self._incoming[peer]
        if header.row == 0:
            coming.assembly = Assembly(header)
        if coming.assembly is None or not coming.assembly.add(frame):
            return
        rows, coming.assembly = coming.assembly.rows, None
        origin = self._peers.index(peer)
        match header.kind:
            case Kind.PIECE:
                check_packed(rows)
                coming.note(turn, header.position)
                key = (turn, (origin, header.position))
                self._letters.put(key, Letter(rows), rows.nbytes)
            case Kind.GIVEN_UP:
                words = rows.numpy().tobytes().decode(errors="replace")
                kind = StaleEpoch if header.position else GenerationFailed
                self._letters.fail(end_of(turn), kind(f"{peer.short}: {words}"))
            case Kind.ORDER:
                if len(self.orders) >= MAX_ORDERS:
                    raise ProtocolError("an order came before those that came earlier were done")
                slices = from_bytes(rows, self._bounds.most_rows, self._bounds.width)
                self.orders.append(Order(turn, slices))

    def _check(self, peer: PeerId, header: FrameHeader) -> None:
        rows = self._bounds.most_rows
        match header.kind:
            case Kind.PIECE:
                most = self._bounds.most_width
                if header.rows * numbers_in(header.dtype, header.width) > rows * most:
                    raise ProtocolError(
                        f"a piece of [{header.rows}, {header.width}] {header.dtype.name} is larger "
                        f"than any of a stage with {rows} rows of {most}"
                    )
            case Kind.ORDER:
                numbers_bytes = _NUMBER_BYTES * rows * max(self._bounds.width, 1)
                most = numbers_bytes // WIDTH + MAX_SESSIONS * _ENTRY_ROWS + _END_ROWS
                if peer != self._peers[0]:
                    raise ProtocolError(f"{peer.short} does not lead this stage")
                if header.dtype is not DType.UINT8 or header.width != WIDTH or header.rows > most:
                    raise ProtocolError(f"an order is at most [{most}, {WIDTH}] bytes")
            case _:
                if header.dtype is not DType.UINT8 or header.rows != 1:
                    raise ProtocolError("the reason for giving up a turn is one row of bytes")
                if header.width > MAX_REASON_BYTES:
                    raise ProtocolError(f"a reason has at most {MAX_REASON_BYTES} bytes")

    # --- what goes --------------------------------------------------------------------------------

    def _begin(self, turn: int) -> Shared:
        self._turn = turn
        self._letters.discard(lambda key: key[0] < turn)
        post = self._poster(turn)
        return Shared(self.stage, TurnExchange(turn, self._me, self._wires, self._letters, post))

    def _poster(self, turn: int) -> Callable[[Sequence[Piece]], None]:
        loop = asyncio.get_running_loop()

        def send(pieces: Sequence[Piece]) -> None:
            for to, number, dtype, rows in pieces:
                header = self._header(turn, Kind.PIECE, dtype, rows, number)
                self._send(self._peers[to], header, rows)

        def post(pieces: Sequence[Piece]) -> None:
            loop.call_soon_threadsafe(send, pieces)

        return post

    def _header(
        self, turn: int, kind: Kind, dtype: DType, rows: Tensor, number: int = 0
    ) -> FrameHeader:
        return FrameHeader(
            epoch=self._plan.epoch,
            plan=self._plan.plan_id,
            session=SessionId(f"{turn:032x}"),
            kind=kind,
            dtype=dtype,
            choose=False,
            position=number,
            rows=rows.shape[0],
            row=0,
            tile_rows=rows.shape[0],
            width=rows.shape[1],
        )
