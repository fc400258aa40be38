"""A share of the vocabulary answers the device that chooses tokens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from mesh.errors import ProtocolError
from mesh.ids import PeerId
from mesh.limits import MAX_SESSIONS
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan
from runtime.assembly import Assembly, assembly_for
from runtime.heads import letters
from runtime.heads.chooser import HeadShare
from runtime.heads.question import Want
from runtime.outbox import Outbox
from runtime.worker import Worker

_log = logging.getLogger(__name__)


class Answering:
    """Of one plan. It remembers nothing from question to question."""

    def __init__(
        self,
        plan: Plan,
        share: HeadShare,
        hidden_size: int,
        worker: Worker,
        outbox: Outbox,
    ) -> None:
        self._lead = plan.stages[-1].lead
        self._share = share
        self._hidden_size = hidden_size
        self._worker = worker
        self._outbox = outbox
        self._assembly: Assembly | None = None
        self._is_over = False

    def on_question(self, peer: PeerId, frame: TensorFrame) -> None:
        """Takes a tile; a whole question is answered when the worker comes to it. Raises
        ProtocolError for one that nobody of this plan would ask.
        """
        header = frame.header
        if peer != self._lead:
            raise ProtocolError(f"{peer.short} chooses no tokens in this plan")
        if header.row == 0:
            self._check(header)
        assembly = self._assembly = assembly_for(header, self._assembly)
        if assembly.add(frame):
            self._assembly = None
            data: letters.Bytes = assembly.rows.numpy().reshape(-1)
            hidden, wanted = letters.read_question(data, self._hidden_size, self._share.span)
            loop = asyncio.get_running_loop()
            self._worker.soon(lambda: self._answer(loop, header, hidden, wanted))

    def end(self) -> None:
        """The plan is over: what is still to be answered is not."""
        self._is_over = True

    def _check(self, header: FrameHeader) -> None:
        longest = letters.longest_question(MAX_SESSIONS, self._hidden_size, self._share.span)
        rows, width = letters.shape(longest)
        if header.dtype is not DType.UINT8 or header.rows * header.width > rows * width:
            raise ProtocolError(
                f"a question about the vocabulary has at most {longest} bytes; "
                f"[{header.rows}, {header.width}] of {header.dtype.name} came"
            )

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        question: FrameHeader,
        hidden: Tensor,
        wanted: Sequence[Want],
    ) -> None:
        """In the worker's thread."""
        if self._is_over:
            return
        span = self._share.span
        try:
            letter = letters.answer(self._share.tell(hidden, wanted), wanted, span)
        except Exception as error:  # exhausted memory, a bug: whoever asked is not to wait for it
            _log.error("a share of the vocabulary failed", exc_info=error)
            letter = letters.failure(wanted, span, letters.How.FAILED)
        loop.call_soon_threadsafe(self._send, question, letters.as_rows(letter))

    def _send(self, question: FrameHeader, rows: Tensor) -> None:
        count, width = rows.shape
        header = replace(
            question, kind=Kind.HEAD_TELL, rows=count, row=0, tile_rows=count, width=width
        )
        if not self._is_over:
            self._outbox.post(self._lead, header, rows)
