"""Devices of one plan in one event loop: real pipelines and workers, frames handed over in memory.

For the logic of steps and sessions; real links and processes have tests of their own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from mesh.errors import LinkClosed, MeshError, PlanReplaced, ProtocolError, StaleEpoch
from mesh.ids import Epoch, ModelId, PeerId, PlanId, SessionId
from mesh.tensor_frame import FrameHeader, TensorFrame, decode_frame, encode_header
from planner.plan import Capacity, Job, Plan, Prediction, Share, Span, Stage
from runtime.checkpoints import Model
from runtime.compute.torch_device import CPU
from runtime.cut import WHOLE, Cut, cut_of
from runtime.heads.chooser import HeadShare
from runtime.outbox import Outbox
from runtime.pipeline import Pipeline
from runtime.post import Post
from runtime.reading import Reading
from runtime.refill import Held, in_common
from runtime.replay import Replayed
from runtime.sampling import Sampling
from runtime.session import Session, Wanted
from runtime.session_messages import (
    AskCache,
    CloseSession,
    FetchCaches,
    OpenSession,
    StepFailed,
)
from runtime.stages import stage_of
from runtime.steps import Steps
from runtime.traffic import Traffic
from runtime.worker import Worker

LOG_BYTES = 1 << 24  # for what the stages of one device gave others
Tamper = Callable[[PeerId, PeerId, TensorFrame], TensorFrame | None]


def peer(number: int) -> PeerId:
    return PeerId(f"{number:064x}")


def make_plan(
    checkpoint: Model,
    cuts: tuple[int, ...],
    counter: int = 1,
    *,
    sessions: int = 4,
    context: int | None = None,
    devices: tuple[int, ...] | None = None,
) -> Plan:
    """A pipeline cut before each layer of `cuts`; stage i is on device i unless told otherwise."""
    layers = len(checkpoint.profile().layers)
    bounds = itertools.pairwise((0, *cuts, layers))
    numbers = devices or tuple(range(len(cuts) + 1))
    return Plan(
        epoch=Epoch(counter, peer(0)),
        plan_id=PlanId.new(),
        model=checkpoint.model_id,
        model_name=checkpoint.name,
        job=Job.RUN,
        stages=tuple(
            Stage(Span(first, last), (Share(peer(number)),))
            for number, (first, last) in zip(numbers, bounds, strict=True)
        ),
        capacity=Capacity(sessions, context or checkpoint.spec.context),
        reason="for a test",
        predicted=Prediction(0.0, 0.0, 0, ()),
    )


class Device:
    """One device: its worker, its pipeline, its own sessions' steps."""

    def __init__(self, me: PeerId, room: Room) -> None:
        self.me = me
        self.room = room
        self.worker = Worker(1)
        self.outbox = Outbox(me, self, self.deliver, self.lost)
        self.pipeline = Pipeline(
            self.worker, self.outbox, room.report, room.log_bytes, room.on_blame
        )
        self.steps = Steps(self.outbox)
        self.plans: dict[ModelId, PlanId] = {}  # put up last

    def send_now(self, to: PeerId, header: FrameHeader, payload: memoryview) -> bool:
        return False  # each frame lets others go first

    async def send(self, to: PeerId, header: FrameHeader, payload: memoryview) -> None:
        """The wire: the frame is encoded and decoded as on a real link."""
        await asyncio.sleep(0)
        target = self.room.devices.get(to)
        if target is None:
            raise LinkClosed(f"{to.short} is gone")
        frame: TensorFrame | None = decode_frame(encode_header(header) + bytes(payload))
        if frame is not None and self.room.tamper is not None:
            frame = self.room.tamper(self.me, to, frame)
        if frame is not None:
            try:
                target.deliver(self.me, frame)
            except ProtocolError as error:
                self.room.refusals.append(str(error))

    def lost(self, header: FrameHeader, reason: str) -> None:
        if header.kind.from_owner:
            failure = StepFailed(header.plan, header.session, reason, lost=True)
            self.steps.on_step_failed(failure)
        elif not header.kind.to_owner:
            self.pipeline.on_lost(header, reason)

    def deliver(self, source: PeerId, frame: TensorFrame) -> None:
        if frame.header.kind.to_owner:
            self.steps.on_frame(source, frame)
        else:
            self.pipeline.on_frame(source, frame)

    def install(self, plan: Plan, checkpoint: Model) -> None:
        before = None
        if plan.model in self.plans:
            before = self.pipeline.end(self.plans[plan.model])
        self.plans[plan.model] = plan.plan_id
        if plan.head:
            vocab = next((one.vocab for one in plan.head if one.device == self.me), None)
            share = None
            if vocab is not None:
                share = HeadShare(checkpoint.load_head(None, vocab), vocab, CPU)
            self.pipeline.heads.install(plan, share, checkpoint.spec.hidden_size)
        index = plan.stage_of(self.me)
        if index is None:
            self.pipeline.moving.part(before, None)
            return
        span = plan.stages[index].layers
        cut = cut_of(plan, self.me).of_layers
        blocks = {i: self.room.block(checkpoint, i, cut) for i in range(span.first, span.last)}
        last = span.last == len(checkpoint.profile().layers)
        leads = last and plan.stages[-1].lead == self.me
        head = self.room.head(checkpoint) if leads and not plan.head else None
        stage = stage_of(checkpoint, span, blocks, head)
        self.pipeline.install(Post(plan, index, stage, checkpoint.traffic), before)


class Room:
    """All devices, and the road of every session: the plan in force is whatever was put up last."""

    def __init__(self, checkpoint: Model, log_bytes: int = LOG_BYTES) -> None:
        self.checkpoint = checkpoint
        self.devices: dict[PeerId, Device] = {}
        self.log_bytes = log_bytes
        self.tamper: Tamper | None = None
        self.refusals: list[str] = []
        self.pauses: list[str] = []
        self.failures: list[StepFailed] = []
        self.fetched: list[FetchCaches] = []
        self.blamed: list[PeerId] = []
        self.blame_heard = asyncio.Event()
        self._owners: dict[SessionId, PeerId] = {}
        self._plan: Plan | None = None
        self._changed = asyncio.Condition()
        self._blocks: dict[tuple[ModelId, int, Cut], object] = {}
        self._heads: dict[ModelId, object] = {}

    @classmethod
    @asynccontextmanager
    async def of(
        cls, checkpoint: Model, count: int, log_bytes: int = LOG_BYTES
    ) -> AsyncIterator[Room]:
        room = cls(checkpoint, log_bytes)
        async with asyncio.TaskGroup() as tasks:
            running = []
            for number in range(count):
                device = room.devices[peer(number)] = Device(peer(number), room)
                running += [
                    tasks.create_task(device.outbox.run()),
                    tasks.create_task(device.pipeline.run()),
                ]
            await asyncio.sleep(0)  # lets the outboxes open their task groups
            try:
                yield room
            finally:
                for task in running:
                    task.cancel()
                for device in room.devices.values():
                    device.worker.close()

    def block(self, checkpoint: Model, index: int, cut: Cut = WHOLE) -> object:
        key = (checkpoint.model_id, index, cut)
        if key not in self._blocks:
            self._blocks[key] = checkpoint.load_layer(index, cut=cut)
        return self._blocks[key]

    def head(self, checkpoint: Model) -> object:
        if checkpoint.model_id not in self._heads:
            self._heads[checkpoint.model_id] = checkpoint.load_head()
        return self._heads[checkpoint.model_id]

    async def put_up(self, plan: Plan) -> None:
        """Installs a plan on every device, and ends what ran under the one before."""
        async with self._changed:
            self._plan = plan
            self.install(plan, self.checkpoint)
            self._changed.notify_all()

    def install(self, plan: Plan, checkpoint: Model) -> None:
        """The same, for any model; the sessions of `session` go through the plan put up last."""
        for device in self.devices.values():
            device.install(plan, checkpoint)
            device.steps.interrupt(
                PlanReplaced("another plan is in force"), lambda leased: leased.model == plan.model
            )

    async def lose(self, number: int) -> None:
        """A device vanishes with all it holds; there is no plan until the next is put up."""
        self._plan = None
        gone = self.devices.pop(peer(number))
        gone.worker.close()
        for plan in gone.plans.values():
            gone.pipeline.end(plan)
        for device in self.devices.values():
            device.outbox.forget(peer(number))
            device.pipeline.forget(peer(number))
            device.steps.interrupt(StaleEpoch(f"{peer(number).short} is gone"))

    def session(
        self, owner: int, prompt: list[int], tokens: int, sampling: Sampling | None = None
    ) -> Session:
        return self.wanting(owner, Wanted(prompt, tokens, sampling or Sampling(), frozenset()))

    def wanting(self, owner: int, wanted: Wanted) -> Session:
        return Session(*self._around(owner), wanted)

    def reading(self, owner: int, sources: list[Tensor]) -> Reading:
        return Reading(*self._around(owner), sources)

    def _around(self, owner: int) -> tuple[PeerId, Room, Steps, Traffic]:
        return peer(owner), self, self.devices[peer(owner)].steps, self.checkpoint.traffic

    @property
    def failed_steps(self) -> list[StepFailed]:
        """Those of plans that still held; a stage that loses a device of its plan tells, too."""
        return [one for one in self.failures if not one.lost]

    def report(self, owner: PeerId, failure: StepFailed) -> None:
        self.failures.append(failure)
        self.devices[owner].steps.on_step_failed(failure)

    def on_blame(self, plan: Plan, device: PeerId, reason: str) -> None:
        self.blamed.append(device)
        self.blame_heard.set()

    # --- runtime.replay.Road ----------------------------------------------------------------------

    async def plan(self) -> Plan:
        async with self._changed:
            await self._changed.wait_for(lambda: self._plan is not None)
        assert self._plan is not None
        return self._plan

    async def open(self, plan: Plan, request: OpenSession) -> list[Held]:
        self._owners[request.session] = request.owner
        held: list[Held] = []
        for stage in plan.stages:
            shares = [share.device for share in stage.shares]
            if not all(device in self.devices for device in shares):
                raise LinkClosed("gone")
            held.append(in_common([self.devices[one].pipeline.open(request) for one in shares]))
        return held

    async def fetch(self, plan: Plan, stage: int, request: FetchCaches) -> Held | None:
        taker = self.devices.get(plan.stages[stage].lead)
        if taker is None or request.giver not in self.devices:
            return None
        self.fetched.append(request)

        async def ask(giver: PeerId, asked: AskCache) -> int:
            if giver not in self.devices:
                raise LinkClosed(f"{giver.short} is gone")
            return await self.devices[giver].pipeline.moving.give(taker.me, asked)

        try:
            return await taker.pipeline.moving.fetch(request, self._owners[request.session], ask)
        except MeshError:
            return None

    async def close(self, plan: Plan, request: CloseSession) -> None:
        owner = self._owners.get(request.session)
        for device in self.devices.values() if owner is not None else ():
            device.pipeline.close(request.session, owner, request.prefix, paused=request.paused)
            if request.conversation is not None:
                device.pipeline.moving.former.let_go(request.conversation)

    def paused(self, work: Replayed[Any], reason: str) -> None:
        self.pauses.append(reason)

    def resumed(self, work: Replayed[Any]) -> None:
        pass


def altered(frame: TensorFrame, **fields: object) -> TensorFrame:
    return TensorFrame(replace(frame.header, **fields), frame.payload)  # type: ignore[arg-type]
