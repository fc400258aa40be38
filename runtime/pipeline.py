"""The pipeline on this device: frames in, steps through the worker, frames out.

One pipeline serves every conversation under the plan in force. A step reads downwards: receive its
tiles, compute it, in turns with those of others, send what comes out to the next stage or, from the
last one, to the owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from mesh.errors import Busy, PotluckError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from runtime.assembly import Assembly
from runtime.history import History
from runtime.outbox import Outbox
from runtime.post import Conversation, Post
from runtime.session_messages import OpenSession, StepFailed
from runtime.stage import Slice
from runtime.turns import Pace, Waiting, next_turn
from runtime.worker import Worker

_log = logging.getLogger(__name__)

Report = Callable[[PeerId, StepFailed], None]


class Pipeline:
    """This device's stage at work. Everything but the compute runs in the event loop."""

    def __init__(self, worker: Worker, outbox: Outbox, report: Report) -> None:
        """`report` tells a session's owner that a step failed here; it must not raise."""
        self.refused: Counter[str] = Counter()  # frames dropped, by cause
        self._worker = worker
        self._outbox = outbox
        self._report = report
        self._post: Post | None = None
        self._waiting: list[Waiting] = []  # whole steps, the oldest first
        self._more = asyncio.Event()
        self._pace = Pace()

    @property
    def conversations(self) -> int:
        """How many conversations have their place here."""
        return len(self._post.conversations) if self._post else 0

    async def run(self) -> None:
        """Computes until cancelled."""
        while True:
            await self._more.wait()
            await self._turn()
            if not self._waiting:
                self._more.clear()

    def install(self, post: Post | None) -> None:
        """Puts a plan in force; the old plan's conversations are gone, their owners replay."""
        self._post = post

    # --- conversations ----------------------------------------------------------------------------

    def open(self, request: OpenSession) -> int:
        """Makes room for a conversation; returns how many of its tokens are known here already.

        Raises StaleEpoch for another plan than the one in force, Busy when every place is taken,
        ProtocolError when the conversation is longer than the plan allows.
        """
        post = self._post
        if post is None or (request.epoch, request.plan) != (post.plan.epoch, post.plan.plan_id):
            raise StaleEpoch(f"plan {request.plan[:8]} of epoch {request.epoch} is not in force")
        capacity = post.plan.capacity
        known = request.session in post.conversations
        if not known and len(post.conversations) >= capacity.sessions:
            raise Busy(
                f"all {capacity.sessions} places for a conversation are taken; "
                "wait for one to end, or start the devices with more --sessions"
            )
        if request.context > capacity.context:
            raise ProtocolError(f"the plan has room for {capacity.context} tokens a conversation")
        history = History.unpack(request.history) if request.sampling.needs_history else None
        held = post.stage.open(
            request.session,
            request.sampling,
            request.context,
            prefix=request.prefix,
            history=history,
            places=capacity.sessions,
        )
        post.conversations[request.session] = Conversation(request)
        return held

    def close(self, session: SessionId, owner: PeerId, prefix: bytes = b"") -> None:
        """Frees a conversation's place; one that is not here, or another's, stays as it is."""
        post = self._post
        conversation = post.conversations.get(session) if post else None
        if post is not None and conversation is not None and conversation.opened.owner == owner:
            del post.conversations[session]
            post.stage.close(session, prefix)

    def forget(self, peer: PeerId) -> None:
        """A device is gone, and its conversations with it."""
        conversations = self._post.conversations if self._post else {}
        for session, conversation in list(conversations.items()):
            if conversation.opened.owner == peer:
                self.close(session, peer)

    # --- receive ----------------------------------------------------------------------------------

    def on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        """Takes one tile. Raises ProtocolError for what no peer of this plan would send."""
        header, post = frame.header, self._post
        if post is None or (header.epoch, header.plan) != (post.plan.epoch, post.plan.plan_id):
            self.refused["stale epoch or plan"] += 1
            return
        conversation = post.conversations.get(header.session)
        if conversation is None:
            self.refused["closed conversation"] += 1
            return
        try:
            self._receive(peer, frame, post, conversation)
        except ProtocolError as error:
            # The owner sends the step again; the link is closed by whoever called us.
            self.refused["malformed"] += 1
            conversation.assembly = None
            self._fail(conversation.opened, f"{peer.short} sent: {error}")
            raise

    def _receive(
        self, peer: PeerId, frame: TensorFrame, post: Post, conversation: Conversation
    ) -> None:
        header = frame.header
        if peer != post.upstream(conversation.opened):
            raise ProtocolError(f"{peer.short} does not send to this stage in this plan")
        post.expected(conversation.opened).check(header)
        if conversation.assembly is None or header.row == 0:
            conversation.assembly = Assembly(header)
        if conversation.assembly.add(frame):
            self._waiting.append(Waiting(header, conversation.assembly.rows))
            self._more.set()
            conversation.assembly = None

    def on_lost(self, header: FrameHeader, reason: str) -> None:
        """What this stage sent on did not arrive: the next device is gone, as seen from here."""
        conversation = self._post.conversations.get(header.session) if self._post else None
        if conversation is not None:
            self._fail(conversation.opened, reason, lost=True)

    # --- compute and send -------------------------------------------------------------------------

    async def _turn(self) -> None:
        """One turn of the worker, for as many conversations as wait."""
        post = self._post
        self._waiting = [step for step in self._waiting if self._is_wanted(post, step)]
        if post is None or not self._waiting:
            return
        alone = len(post.conversations) == 1
        turn = next_turn(self._waiting, alone, self._pace.slice_rows)
        try:
            await self._compute(post, turn)
        except Exception as error:
            if len(turn) == 1:
                self._give_up(post, turn[0][0], error)
                return
            for one in turn:  # which of them it was shows when each is alone
                try:
                    await self._compute(post, [one])
                except Exception as error_of_one:
                    self._give_up(post, one[0], error_of_one)

    async def _compute(self, post: Post, turn: Sequence[tuple[Waiting, int]]) -> None:
        slices = [_slice(step, rows) for step, rows in turn]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        outs = await self._worker.run(post.stage.turn, slices)
        self._pace.note(sum(rows for _, rows in turn), loop.time() - started_s)
        for (step, rows), out in zip(turn, outs, strict=True):
            step.done += rows
            if not step.left:
                self._waiting.remove(step)
                self._finish(post, step, out)
            elif out is not None:
                step.outs.append(out)

    def _finish(self, post: Post, step: Waiting, out: torch.Tensor | None) -> None:
        """All rows are computed: on to the next stage, or the answer to the owner."""
        conversation = post.conversations.get(step.header.session)
        if conversation is None or self._post is not post:
            self.refused["closed conversation"] += 1
        elif post.is_last:
            self._answer(post, conversation.opened, step.header, out)
        elif out is not None:
            whole = torch.cat([*step.outs, out]) if step.outs else out
            header = _whole(step.header, Kind.HIDDEN, DType.FLOAT32, whole)
            self._outbox.post(post.downstream(conversation.opened), header, whole)

    def _give_up(self, post: Post, step: Waiting, error: Exception) -> None:
        """The step failed, the stage lives on, and the owner decides whether to try again."""
        self._waiting.remove(step)
        if not isinstance(error, PotluckError):  # exhausted memory, a bad operand, a bug
            _log.error("a step at %d failed", step.header.position, exc_info=error)
        conversation = post.conversations.get(step.header.session)
        if conversation is not None:
            words = str(error) if isinstance(error, PotluckError) else repr(error)
            self._fail(conversation.opened, words)

    def _is_wanted(self, post: Post | None, step: Waiting) -> bool:
        if post is None or post.plan.plan_id != step.header.plan:
            self.refused["stale epoch or plan"] += 1
            return False
        if step.header.session not in post.conversations:
            self.refused["closed conversation"] += 1
            return False
        return True

    def _answer(
        self, post: Post, opened: OpenSession, header: FrameHeader, chosen: torch.Tensor | None
    ) -> None:
        kind = Kind.CHOSEN if chosen is not None else Kind.DONE
        out = chosen if chosen is not None else torch.zeros(1, 1, dtype=torch.int32)
        self._outbox.post(post.downstream(opened), _whole(header, kind, DType.INT32, out), out)

    def _fail(self, opened: OpenSession, reason: str, *, lost: bool = False) -> None:
        self._report(opened.owner, StepFailed(opened.plan, opened.session, reason, lost))


def _slice(step: Waiting, rows: int) -> Slice:
    last = step.done + rows
    return Slice(
        step.header.session,
        step.header.position + step.done,
        step.rows[step.done : last],
        choose=step.header.choose and last == len(step.rows),
    )


def _whole(header: FrameHeader, kind: Kind, dtype: DType, out: torch.Tensor) -> FrameHeader:
    """The header of `out` as one tile; the outbox cuts it."""
    rows, width = out.shape
    return replace(header, kind=kind, dtype=dtype, rows=rows, row=0, tile_rows=rows, width=width)
