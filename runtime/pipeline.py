"""The pipeline on this device: frames in, steps through the worker, frames out.

One pipeline serves every conversation under the plan in force. A step reads downwards: receive its
tiles, compute it, send what comes out to the next stage or, from the last one, to the owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from mesh.errors import Busy, PotluckError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan
from runtime.assembly import Assembly, Expected
from runtime.outbox import Outbox
from runtime.session_messages import OpenSession, StepFailed
from runtime.stage import Stage
from runtime.worker import Worker

_log = logging.getLogger(__name__)

MAX_STEP_ROWS = 512  # tokens in one step; a longer prompt comes in several

Report = Callable[[PeerId, StepFailed], None]


@dataclass(slots=True)
class Conversation:
    """One session as a stage sees it."""

    opened: OpenSession
    assembly: Assembly | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """This device's place in the plan in force."""

    plan: Plan
    index: int  # of its stage
    stage: Stage
    hidden_size: int
    conversations: dict[SessionId, Conversation] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        return self.index == len(self.plan.stages) - 1

    def upstream(self, opened: OpenSession) -> PeerId:
        """Who sends steps here: the session's owner, or the stage before."""
        return opened.owner if self.index == 0 else self.plan.stages[self.index - 1].device

    def downstream(self, opened: OpenSession) -> PeerId:
        """Who gets what this stage computes: the next stage, or the session's owner."""
        return opened.owner if self.is_last else self.plan.stages[self.index + 1].device

    def expected(self, opened: OpenSession) -> Expected:
        if self.index == 0:
            return Expected(Kind.TOKENS, DType.INT32, 1, MAX_STEP_ROWS, opened.context)
        width = self.hidden_size
        return Expected(Kind.HIDDEN, DType.FLOAT32, width, MAX_STEP_ROWS, opened.context)


@dataclass(frozen=True, slots=True)
class _Step:
    """A whole step, waiting for the worker."""

    header: FrameHeader
    rows: torch.Tensor  # [S, width]


class Pipeline:
    """This device's stage at work. Everything but the compute runs in the event loop."""

    def __init__(self, worker: Worker, outbox: Outbox, report: Report) -> None:
        """`report` tells a session's owner that a step failed here; it must not raise."""
        self.refused: Counter[str] = Counter()  # frames dropped, by cause
        self._worker = worker
        self._outbox = outbox
        self._report = report
        self._post: Post | None = None
        self._steps: asyncio.Queue[_Step] = asyncio.Queue()

    @property
    def conversations(self) -> int:
        """How many conversations have their place here."""
        return len(self._post.conversations) if self._post else 0

    async def run(self) -> None:
        """Computes until cancelled."""
        while True:
            await self._compute(await self._steps.get())

    def install(self, post: Post | None) -> None:
        """Puts a plan in force; the old plan's conversations are gone, their owners replay."""
        self._post = post

    # --- conversations ----------------------------------------------------------------------------

    def open(self, request: OpenSession) -> None:
        """Makes room for a conversation.

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
        post.stage.open(request.session, request.sampling, request.context)
        post.conversations[request.session] = Conversation(request)

    def close(self, session: SessionId, owner: PeerId) -> None:
        """Frees a conversation's caches; one that is not here, or another's, stays as it is."""
        post = self._post
        conversation = post.conversations.get(session) if post else None
        if post is not None and conversation is not None and conversation.opened.owner == owner:
            del post.conversations[session]
            post.stage.close(session)

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
            self._steps.put_nowait(_Step(header, conversation.assembly.rows))
            conversation.assembly = None

    def on_lost(self, header: FrameHeader, reason: str) -> None:
        """What this stage sent on did not arrive: the next device is gone, as seen from here."""
        conversation = self._post.conversations.get(header.session) if self._post else None
        if conversation is not None:
            self._fail(conversation.opened, reason, lost=True)

    # --- compute and send -------------------------------------------------------------------------

    async def _compute(self, step: _Step) -> None:
        header, post = step.header, self._post
        if post is None or post.plan.plan_id != header.plan:
            self.refused["stale epoch or plan"] += 1
            return
        conversation = post.conversations.get(header.session)
        if conversation is None:
            self.refused["closed conversation"] += 1
            return
        opened = conversation.opened
        try:
            out = await self._worker.run(
                post.stage.step, header.session, header.position, step.rows, header.choose
            )
        except PotluckError as error:
            self._fail(opened, str(error))
            return
        except Exception as error:  # exhausted memory, a bad operand, a bug: of one step only
            # The step failed, the stage lives on, and the owner decides whether to try again.
            _log.exception("a step at %d failed", header.position)
            self._fail(opened, f"{type(error).__name__}: {error}")
            return
        if post.is_last:
            self._answer(post, opened, header, out)
        elif out is not None:
            self._outbox.post(
                post.downstream(opened), _whole(header, Kind.HIDDEN, DType.FLOAT32, out), out
            )

    def _answer(
        self, post: Post, opened: OpenSession, header: FrameHeader, chosen: torch.Tensor | None
    ) -> None:
        kind = Kind.CHOSEN if chosen is not None else Kind.DONE
        out = chosen if chosen is not None else torch.zeros(1, 1, dtype=torch.int32)
        self._outbox.post(post.downstream(opened), _whole(header, kind, DType.INT32, out), out)

    def _fail(self, opened: OpenSession, reason: str, *, lost: bool = False) -> None:
        self._report(opened.owner, StepFailed(opened.plan, opened.session, reason, lost))


def _whole(header: FrameHeader, kind: Kind, dtype: DType, out: torch.Tensor) -> FrameHeader:
    """The header of `out` as one tile; the outbox cuts it."""
    rows, width = out.shape
    return replace(header, kind=kind, dtype=dtype, rows=rows, row=0, tile_rows=rows, width=width)
