"""The owner's end of the pipeline: tokens or a source out, the answer in from the last stage."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mesh.errors import GenerationFailed, MeshError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, PlanId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Plan, Span
from runtime.chosen import Chosen, from_payload
from runtime.outbox import Outbox
from runtime.refill import stage_with
from runtime.session_messages import StepFailed
from runtime.traffic import Traffic

StepAnswer = Chosen | torch.Tensor | None
Answer = asyncio.Future[StepAnswer]
_Key = tuple[PlanId, SessionId, int]


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send a session's steps through a plan, until the plan is over."""

    plan: Plan
    session: SessionId
    traffic: Traffic  # of the plan's model
    over: MeshError | None = None  # why it ended


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that was sent, through which plan, and where the answer goes."""

    plan: Plan
    answer: Answer
    answers: PeerId  # who has the last layer that it goes through
    vector_width: int  # of the answer, where it is a vector; else 0


class Steps:
    """Steps of this device's own sessions that are under way."""

    def __init__(self, outbox: Outbox) -> None:
        self.refused: Counter[str] = Counter()  # answers that no step waits for
        self._outbox = outbox
        self._leases: set[Lease] = set()
        self._under_way: dict[_Key, _UnderWay] = {}

    @contextmanager
    def lease(self, plan: Plan, session: SessionId, traffic: Traffic) -> Iterator[Lease]:
        """Taken as soon as the plan is known to be in force; `interrupt` ends it.

        Without it, a session that happens to be between two steps would miss the interruption and
        wait for an answer from a device that is gone.
        """
        lease = Lease(plan, session, traffic)
        self._leases.add(lease)
        try:
            yield lease
        finally:
            self._leases.discard(lease)

    def begin(self, lease: Lease, position: int, tokens: list[int], *, choose: bool) -> Answer:
        """Starts one pass of `tokens` at `position`.. through the stages of the lease's plan.

        The answer is what was chosen if `choose`, else None. It ends in the error that `interrupt`
        was called with when the plan is over, in GenerationFailed when a stage cannot do the step.
        """
        rows = torch.tensor(tokens, dtype=torch.int32).unsqueeze(1)  # [S, 1]
        first = lease.traffic.entry(lease.plan)
        return self._send(lease, first, Kind.TOKENS, position, rows, choose=choose)

    def begin_source(
        self, lease: Lease, position: int, rows: torch.Tensor, *, choose: bool
    ) -> Answer:
        """Starts the pass of a source, as `Traffic.source` describes it, through all stages.

        The answer is a vector [width] if `choose`, which is for an encoder alone; else None, once
        the decoder's stages have it. What `position` means stands with `FrameHeader`.
        """
        return self._send(lease, 0, Kind.SOURCE, position, rows, choose=choose)

    def begin_again(self, lease: Lease, position: int, tokens: list[int], layers: Span) -> Answer:
        """Starts one pass of `tokens` at `position`.. through some layers alone, which lack them.

        Those of the first layer are sent; for another the device with the layer before has in its
        log what went in. The answer is None.
        """
        until = layers.last
        if layers.first == 0:
            rows = torch.tensor(tokens, dtype=torch.int32).unsqueeze(1)  # [S, 1]
            return self._send(lease, 0, Kind.TOKENS, position, rows, choose=False, until=until)
        asked = torch.tensor([[layers.first, len(tokens)]], dtype=torch.int32)
        giver = stage_with(lease.plan, layers.first - 1)
        return self._send(lease, giver, Kind.AGAIN, position, asked, choose=False, until=until)

    def _send(
        self,
        lease: Lease,
        stage: int,
        kind: Kind,
        position: int,
        rows: torch.Tensor,
        *,
        choose: bool,
        until: int = 0,
    ) -> Answer:
        if lease.over is not None:
            raise lease.over
        plan, session = lease.plan, lease.session
        key = (plan.plan_id, session, position)
        answer: Answer = asyncio.get_running_loop().create_future()
        vector_width = lease.traffic.vector_width if kind is Kind.SOURCE and choose else 0
        last = stage_with(plan, until - 1) if until else -1
        self._under_way[key] = _UnderWay(plan, answer, plan.stages[last].lead, vector_width)
        answer.add_done_callback(lambda done: self._forget(key, done))
        header = FrameHeader(
            epoch=plan.epoch,
            plan=plan.plan_id,
            session=session,
            kind=kind,
            dtype=DType.FLOAT32 if rows.is_floating_point() else DType.INT32,
            choose=choose,
            position=position,
            rows=rows.shape[0],
            row=0,
            tile_rows=rows.shape[0],
            width=rows.shape[1],
            until=until,
        )
        self._outbox.post(plan.stages[stage].lead, header, rows)
        return answer

    def on_frame(self, peer: PeerId, frame: TensorFrame) -> bool:
        """Takes a frame that ends a step; False when no step waits for it: it is stale.

        Raises ProtocolError for an answer of a wrong shape, or from a device that gives none.
        """
        header = frame.header
        dtype = DType.FLOAT32 if header.kind is Kind.VECTOR else DType.INT32
        if (header.dtype, header.rows) != (dtype, 1):
            raise ProtocolError(f"{header.kind.name} is one row of {dtype.name}")
        step = self._under_way.get((header.plan, header.session, header.position))
        if step is None or step.answer.done():
            self.refused["late answer"] += 1
            return False
        if peer != step.answers:
            raise ProtocolError(f"{peer.short} does not answer this step in this plan")
        try:
            step.answer.set_result(_read(frame, step.vector_width))
        except GenerationFailed as error:  # of the right form: the owner tries again
            step.answer.set_exception(error)
        except ProtocolError as error:  # as well; whoever called us closes the link
            step.answer.set_exception(GenerationFailed(f"{peer.short} answered: {error}"))
            raise
        return True

    def on_step_failed(self, failure: StepFailed) -> None:
        """A stage says that it cannot do a step of a session of ours, or none at all any more."""
        if failure.lost:
            for lease in self._leases:
                if (lease.plan.plan_id, lease.session) == (failure.plan, failure.session):
                    lease.over = StaleEpoch(failure.reason)
        for (plan, session, _), step in list(self._under_way.items()):
            if (plan, session) == (failure.plan, failure.session) and not step.answer.done():
                error = StaleEpoch if failure.lost else GenerationFailed
                step.answer.set_exception(error(failure.reason))

    def interrupt(
        self, error: MeshError, is_over: Callable[[Plan], bool] = lambda plan: True
    ) -> None:
        """Ends the leases and the steps under way of the plans that are over."""
        for lease in self._leases:
            if lease.over is None and is_over(lease.plan):
                lease.over = error
        for step in list(self._under_way.values()):
            if is_over(step.plan) and not step.answer.done():
                step.answer.set_exception(error)

    def _forget(self, key: _Key, answer: Answer) -> None:
        if not answer.cancelled():
            answer.exception()  # is known now, though its owner may have given up waiting for it
        step = self._under_way.get(key)
        if step is not None and step.answer is answer:  # else the same step was begun again
            del self._under_way[key]


def _read(frame: TensorFrame, vector_width: int) -> StepAnswer:
    """What ends a step that is answered with a vector of that width, or else with a token.

    Raises ProtocolError for what is neither, GenerationFailed for numbers that are none.
    """
    header = frame.header
    if header.kind is Kind.DONE:
        return None
    if header.kind is Kind.CHOSEN and not vector_width:
        return from_payload(frame.payload, header.width)
    if header.kind is not Kind.VECTOR or header.width != vector_width:
        what = f"a vector of {vector_width} numbers" if vector_width else "a token"
        raise ProtocolError(f"expected {what}, got {header.kind.name} of {header.width}")
    vector = torch.frombuffer(bytearray(frame.payload), dtype=torch.float32)  # [width]
    if not torch.isfinite(vector).all():
        raise GenerationFailed(
            "the model's output is not finite: the file is damaged or a device computes wrongly; "
            "compare the file's hash with its source"
        )
    return vector
