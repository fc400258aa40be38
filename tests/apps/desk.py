"""One device without a network: its installer, weights, pipeline and worker, and models at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from apps.models.library import Library
from apps.planning.installer import Installer
from apps.planning.messages import InForce, ModelRef, Prepare, Room, Wish
from apps.timeline import Timeline
from mesh.ids import Epoch, PeerId, SessionId
from mesh.tensor_frame import FrameHeader
from planner.memory import held_bytes
from planner.plan import Plan, Prediction, Span
from runtime.holdings import Holdings
from runtime.outbox import Outbox
from runtime.pipeline import Pipeline
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.steps import Steps
from runtime.weights import Checkpoint
from runtime.worker import Worker
from tests.runtime.room import make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma

LAYERS = 4
MEMORY = 1 << 30


def tiny_checkpoints(folder: Path, count: int) -> list[Checkpoint]:
    """Different models of the same shape."""
    return [
        Checkpoint.open(write_tiny_gemma(folder / f"tiny{n}.gguf", layers=LAYERS, seed=n + 1))
        for n in range(count)
    ]


def wish_for(checkpoint: Checkpoint, plan: Plan) -> Wish:
    reference = ModelRef(
        checkpoint.model_id, checkpoint.name, str(checkpoint.path), checkpoint.precision
    )
    return Wish(reference, checkpoint.profile(), plan.capacity)


def planned(checkpoint: Checkpoint, counter: int, cuts: tuple[int, ...] = (), **how: Any) -> Plan:
    """A plan with what it takes of each device's memory."""
    plan = make_plan(checkpoint, cuts, counter, **how)
    profile = checkpoint.profile()
    memory = tuple(
        (stage.lead, held_bytes(profile, stage.layers, plan.capacity)) for stage in plan.stages
    )
    return replace(plan, predicted=Prediction(0.0, 0.0, 0, memory))


LOG_BYTES = 1 << 24  # for what stages gave each other


class Shelf:
    """A library of open checkpoints."""

    def __init__(self, checkpoints: list[Checkpoint]) -> None:
        self._checkpoints = {one.model_id: one for one in checkpoints}

    async def share(self, reference: ModelRef, span: Span, cut: object = None) -> Checkpoint:
        return self._checkpoints[reference.model].at(reference.precision)


class Desk:
    """The device, at which plans are put in force by hand."""

    def __init__(
        self, checkpoints: list[Checkpoint], number: int = 0, memory_bytes: int = MEMORY
    ) -> None:
        self.me = peer(number)
        self.worker = Worker(1)
        self.timeline = Timeline()
        self.outbox = Outbox(self.me, self, lambda source, frame: None, lambda header, why: None)
        self.steps = Steps(self.outbox)
        self.pipeline = Pipeline(self.worker, self.outbox, lambda owner, failure: None, LOG_BYTES)
        self.holdings = Holdings(self.worker, memory_bytes)
        library = cast(Library, Shelf(checkpoints))
        self.installer = Installer(
            self.me, library, self.holdings, self.pipeline, self.steps, self.timeline
        )

    @classmethod
    @contextmanager
    def of(cls, *args: Any, **how: Any) -> Iterator[Desk]:
        desk = cls(*args, **how)
        try:
            yield desk
        finally:
            desk.worker.close()

    def send_now(self, to: PeerId, header: FrameHeader, payload: memoryview) -> bool:
        raise AssertionError("nothing is sent from here")

    async def send(self, to: PeerId, header: FrameHeader, payload: memoryview) -> None:
        raise AssertionError("nothing is sent from here")

    async def prepare(
        self, plan: Plan, wish: Wish, *stay: Plan, leave: tuple[Plan, ...] = ()
    ) -> None:
        rooms = tuple(Room(one.plan_id, one.capacity) for one in stay)
        request = Prepare(plan, wish, rooms, tuple(one.plan_id for one in leave))
        await self.installer.prepare(request, plan.epoch)

    def open(self, plan: Plan) -> SessionId:
        """A conversation takes its place."""
        session = SessionId.new()
        self.pipeline.open(OpenSession(plan.epoch, plan.plan_id, session, self.me, Sampling(), 16))
        return session

    def known(self) -> dict[str, int]:
        """The plans in force as this device knows them, with their conversations."""
        report = self.installer.report()
        return {str(one.plan.plan_id): one.conversations for one in report.known}


def in_force(*of: tuple[Plan, Wish]) -> tuple[InForce, ...]:
    return tuple(InForce(plan, wish, 0.0) for plan, wish in of)


def epoch(counter: int) -> Epoch:
    return Epoch(counter, peer(0))
