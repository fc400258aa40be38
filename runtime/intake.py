"""The intake: frames of other devices, on their way into the pipeline.

Each belongs to a head that is cut, to a stage that several devices share, or to a conversation,
whose tiles become whole steps here. What belongs to nothing in force is counted and dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mesh.errors import GenerationFailed, ProtocolError, StaleEpoch
from mesh.ids import PeerId, PlanId
from mesh.tensor_frame import FrameHeader, Kind, TensorFrame
from runtime.complaints import Complaints
from runtime.heads.desk import HeadDesk
from runtime.meter import Meter
from runtime.moving import Moving
from runtime.turns import Waiting
from runtime.work import Work


class Intake:
    """For all plans in force; everything runs in the event loop."""

    def __init__(
        self,
        me: PeerId,
        work: Mapping[PlanId, Work],
        heads: HeadDesk,
        moving: Moving,
        meter: Meter,
        complaints: Complaints,
        refused: Counter[str],
    ) -> None:
        """`work` is the pipeline's own, of every plan in force; `refused` counts frames that are
        dropped, by cause.
        """
        self._me = me
        self._work = work
        self._heads = heads
        self._moving = moving
        self._meter = meter
        self._complaints = complaints
        self._refused = refused

    def take(self, peer: PeerId, frame: TensorFrame) -> Waiting | None:
        """Takes one tile; the step of a conversation once it is whole.

        Raises ProtocolError for what no peer of its plan would send.
        """
        header = frame.header
        if peer != self._me:
            self._meter.received(header.plan, header.tile_bytes)
        if header.kind.of_head:
            self._heads.on_frame(peer, frame)
            return None
        work = self._work_of(header)
        if work is None:
            self._refused["stale epoch or plan"] += 1
        elif header.kind.in_stage:
            self._take_in_stage(peer, frame, work)
        else:
            return self._take_of_conversation(peer, frame, work)
        return None

    def _take_of_conversation(self, peer: PeerId, frame: TensorFrame, work: Work) -> Waiting | None:
        conversation = work.post.conversations.get(frame.header.session)
        if conversation is None:
            self._refused["closed conversation"] += 1
            return None
        try:
            if frame.header.kind is Kind.CACHE:
                self._moving.on_frame(peer, frame, conversation)
                return None
            return work.receive(peer, frame, conversation)
        except ProtocolError as error:
            # The owner sends the step again; the link is closed by whoever called us.
            self._refused["malformed"] += 1
            conversation.assembly = None
            is_over = self._complaints.is_wrong(work, peer, error)
            words = f"{peer.short} sent: {error}"
            self._complaints.fail(conversation.opened, words, lost=is_over)
            raise
        except GenerationFailed as error:
            self._complaints.fail(conversation.opened, str(error))
            return None

    def _take_in_stage(self, peer: PeerId, frame: TensorFrame, work: Work) -> None:
        if work.group is None:
            raise ProtocolError(f"{peer.short} has no share of a stage here")
        try:
            work.group.on_frame(peer, frame)
        except ProtocolError as error:
            self._refused["malformed"] += 1
            self._complaints.is_wrong(work, peer, error)
            raise

    def lose(self, header: FrameHeader, reason: str) -> None:
        """A frame that this device sent did not arrive: whoever waits for its answer is told."""
        if header.kind.of_head:
            self._heads.on_lost(header, reason)
            return
        work = self._work_of(header)
        if work is not None and work.group is not None and header.kind.in_stage:
            work.group.lost(StaleEpoch(reason))
            return
        conversation = work.post.conversations.get(header.session) if work else None
        if conversation is not None:
            self._complaints.fail(conversation.opened, reason, lost=True)

    def is_wanted(self, step: Waiting) -> bool:
        """Whether a step that came in is still of a plan in force and of an open conversation."""
        work = self._work_of(step.header)
        if work is None:
            self._refused["stale epoch or plan"] += 1
            return False
        if step.header.session not in work.post.conversations:
            self._refused["closed conversation"] += 1
            return False
        return True

    def _work_of(self, header: FrameHeader) -> Work | None:
        """The work under the very plan and epoch that a frame names."""
        work = self._work.get(header.plan)
        return work if work is not None and work.post.plan.epoch == header.epoch else None
