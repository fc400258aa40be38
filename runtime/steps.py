"""The owner's end of the pipeline: token ids out to the first stage, the answer from the last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mesh.errors import GenerationFailed, MeshError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, PlanId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan
from runtime.chosen import Chosen, from_payload
from runtime.outbox import Outbox
from runtime.session_messages import StepFailed

Answer = asyncio.Future[Chosen | None]
_Key = tuple[PlanId, SessionId, int]


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send a session's steps through a plan, until the plan is over."""

    plan: Plan
    session: SessionId
    over: MeshError | None = None  # why it ended


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that was sent, who must answer it, and where the answer goes."""

    last_stage: PeerId
    answer: Answer


class Steps:
    """Steps of this device's own sessions that are under way."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._leases: set[Lease] = set()
        self._under_way: dict[_Key, _UnderWay] = {}

    @contextmanager
    def lease(self, plan: Plan, session: SessionId) -> Iterator[Lease]:
        """Taken as soon as the plan is known to be in force; `interrupt` ends it.

        Without it, a session that happens to be between two steps would miss the interruption and
        wait for an answer from a device that is gone.
        """
        lease = Lease(plan, session)
        self._leases.add(lease)
        try:
            yield lease
        finally:
            self._leases.discard(lease)

    def begin(self, lease: Lease, position: int, tokens: list[int], *, choose: bool) -> Answer:
        """Starts one pass of `tokens` at `position`.. through all stages of the lease's plan.

        The answer is what was chosen if `choose`, else None. It ends in the error that `interrupt`
        was called with when the plan is over, in GenerationFailed when a stage cannot do the step.
        """
        if lease.over is not None:
            raise lease.over
        plan, session = lease.plan, lease.session
        key = (plan.plan_id, session, position)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._under_way[key] = _UnderWay(plan.stages[-1].device, answer)
        answer.add_done_callback(lambda done: self._forget(key, done))
        rows = torch.tensor(tokens, dtype=torch.int32).unsqueeze(1)  # [S, 1]
        header = FrameHeader(
            epoch=plan.epoch,
            plan=plan.plan_id,
            session=session,
            kind=Kind.TOKENS,
            dtype=DType.INT32,
            choose=choose,
            position=position,
            rows=len(tokens),
            row=0,
            tile_rows=len(tokens),
            width=1,
        )
        self._outbox.post(plan.stages[0].device, header, rows)
        return answer

    def on_frame(self, peer: PeerId, frame: TensorFrame) -> bool:
        """Takes a CHOSEN or DONE frame; False when no step waits for it: it is stale.

        Raises ProtocolError for an answer of a wrong shape, or from a device that gives none.
        """
        header = frame.header
        if (header.dtype, header.rows) != (DType.INT32, 1):
            raise ProtocolError(f"{header.kind.name} is one row of INT32")
        step = self._under_way.get((header.plan, header.session, header.position))
        if step is None or step.answer.done():
            return False
        if peer != step.last_stage:
            raise ProtocolError(f"{peer.short} chooses no tokens in this plan")
        chosen = header.kind == Kind.CHOSEN
        step.answer.set_result(from_payload(frame.payload, header.width) if chosen else None)
        return True

    def on_step_failed(self, failure: StepFailed) -> None:
        """A stage says that it cannot do a step of a session of ours."""
        for (plan, session, _), step in list(self._under_way.items()):
            if (plan, session) == (failure.plan, failure.session) and not step.answer.done():
                error = StaleEpoch if failure.lost else GenerationFailed
                step.answer.set_exception(error(failure.reason))

    def interrupt(self, error: MeshError) -> None:
        """Ends every lease and every step under way: their plan is over."""
        for lease in self._leases:
            lease.over = error
        for step in list(self._under_way.values()):
            if not step.answer.done():
                step.answer.set_exception(error)

    def _forget(self, key: _Key, answer: Answer) -> None:
        step = self._under_way.get(key)
        if step is not None and step.answer is answer:  # else the same step was begun again
            del self._under_way[key]
