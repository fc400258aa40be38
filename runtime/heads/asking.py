"""The device that chooses tokens asks the shares of the vocabulary, and waits for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mesh.errors import GenerationFailed, PotluckError, ProtocolError
from mesh.ids import PeerId, SessionId
from mesh.limits import MAX_TENSOR_BYTES, MAX_TENSOR_PEERS
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan, Span
from runtime.assembly import Assembly, assembly_for
from runtime.heads import letters
from runtime.heads.question import Tell, Want
from runtime.mailbox import SILENCE_TIMEOUT_S, Mailbox
from runtime.outbox import Outbox
from runtime.worker import Worker

Key = tuple[SessionId, PeerId]  # which question, and who answers


@dataclass(slots=True)
class _Asked:
    """A question under way to one device."""

    question: SessionId
    wanted: list[Want]
    assembly: Assembly | None = None


class Asking:
    """Of one plan, about all shares but those of this device."""

    def __init__(
        self, plan: Plan, spans: Mapping[PeerId, Span], worker: Worker, outbox: Outbox
    ) -> None:
        """To be made in the event loop."""
        self.spans = spans
        self._plan = plan
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._answers: Mailbox[Key, list[Tell]] = Mailbox(
            MAX_TENSOR_PEERS, MAX_TENSOR_BYTES, worker.chores
        )
        self._asked: dict[PeerId, _Asked] = {}  # of the last question
        self._count = 0

    def ask(self, hidden: Tensor, wanted: Sequence[Want]) -> Callable[[], dict[Span, list[Tell]]]:
        """Sends final hidden rows [C, hidden] and what is wanted of each; returns what waits for
        the answers. Both in the worker's thread, one question after the other.
        """
        self._count += 1
        question = SessionId(f"{self._count:032x}")
        asked, sent = {}, {}
        for peer, span in self.spans.items():
            within = [one.within(span) for one in wanted]
            asked[peer] = _Asked(question, within)
            sent[peer] = letters.as_rows(letters.question(hidden, within))
        self._loop.call_soon_threadsafe(self._send, question, asked, sent)

        def answers() -> dict[Span, list[Tell]]:
            return {
                span: self._answers.take((question, peer), SILENCE_TIMEOUT_S)
                for peer, span in self.spans.items()
            }

        return answers

    def on_answer(self, peer: PeerId, frame: TensorFrame) -> bool:
        """Takes a tile; False when nobody waits for it. Raises ProtocolError."""
        if peer not in self.spans:
            raise ProtocolError(f"{peer.short} has no share of the vocabulary in this plan")
        asked = self._asked.get(peer)
        if asked is None or asked.question != frame.header.session:
            return False
        key = (asked.question, peer)
        try:
            tells = _read(frame, asked, self.spans[peer])
        except PotluckError as error:
            del self._asked[peer]
            self._answers.fail(key, GenerationFailed(f"{peer.short} answered: {error}"))
            if isinstance(error, ProtocolError):  # whoever called us closes the link
                raise
            return True
        if tells is not None:
            del self._asked[peer]
            size_bytes = frame.header.rows * frame.header.width
            self._answers.put(key, tells, size_bytes)
        return True

    def lose(self, question: SessionId, error: PotluckError) -> None:
        """One question did not reach somebody: whoever waits for the answers gets the error."""
        self._asked.clear()
        for peer in self.spans:
            self._answers.fail((question, peer), error)

    def abandon(self, error: PotluckError) -> None:
        """Nobody will answer any more: whoever waits, now or later, gets the error."""
        self._answers.abandon(error)

    def _send(
        self, question: SessionId, asked: dict[PeerId, _Asked], sent: Mapping[PeerId, Tensor]
    ) -> None:
        self._answers.discard(lambda key: True)  # of a question that was given up
        self._asked = asked
        for peer, rows in sent.items():
            self._outbox.post(peer, _header(self._plan, question, Kind.HEAD_ASK, rows), rows)


def _header(plan: Plan, question: SessionId, kind: Kind, rows: Tensor) -> FrameHeader:
    return FrameHeader(
        epoch=plan.epoch,
        plan=plan.plan_id,
        session=question,
        kind=kind,
        dtype=DType.UINT8,
        choose=False,
        position=0,
        rows=rows.shape[0],
        row=0,
        tile_rows=rows.shape[0],
        width=rows.shape[1],
    )


def _read(frame: TensorFrame, asked: _Asked, span: Span) -> list[Tell] | None:
    """The answer once it is whole. Raises ProtocolError, and what the answer says went wrong."""
    header = frame.header
    size_bytes = letters.answer_bytes(asked.wanted, span)
    if (header.dtype, header.rows, header.width) != (DType.UINT8, *letters.shape(size_bytes)):
        raise ProtocolError(
            f"an answer about the vocabulary has {size_bytes} bytes; "
            f"[{header.rows}, {header.width}] of {header.dtype.name} came"
        )
    asked.assembly = assembly_for(header, asked.assembly)
    if not asked.assembly.add(frame):
        return None
    data: letters.Bytes = asked.assembly.rows.numpy().reshape(-1)[:size_bytes]
    return letters.read_answer(data, asked.wanted, span)
