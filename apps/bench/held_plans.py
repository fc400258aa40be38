"""The plans in force on an emulated device, several at once, and the weights that they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apps.bench.physical import idle as idled
from mesh.ids import PeerId, PlanId, SessionId
from planner.plan import Plan, Span
from runtime.checkpoints import Model, open_model
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU
from runtime.cut import Cut, cut_of
from runtime.heads.chooser import HeadShare
from runtime.models.head import Head
from runtime.pipeline import Pipeline
from runtime.post import Computing, Post
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.stages import stage_of
from runtime.worker import Worker

LOGPROBS: Final = 20  # told of a decoder's answer, to hold it against another's

Source = tuple[str, str]  # a model's path, and the precision of its weights


@dataclass(frozen=True, slots=True)
class Held:
    """A plan, and what this device computes in it: nothing where it has no layers."""

    plan: Plan
    model: Model
    computing: Computing | None


class HeldPlans:
    """Puts plans in force without asking anybody."""

    def __init__(self, me: PeerId, worker: Worker, pipeline: Pipeline) -> None:
        self._me = me
        self._worker = worker
        self._pipeline = pipeline
        self._models: dict[Source, Model] = {}
        self._parts: dict[object, Any] = {}  # layers and heads, by model and what of it
        self._held: dict[PlanId, Held] = {}

    def __getitem__(self, plan: PlanId) -> Held:
        return self._held[plan]

    def model(self, source: Source) -> Model:
        """Opened once. Raises what `open_model` does."""
        if source not in self._models:
            path, precision = source
            self._models[source] = open_model(Path(path), Precision(precision))
        return self._models[source]

    async def load(self, plan: Plan, source: Source, *, is_idle: bool) -> None:
        """Puts a plan in force here. An idle one computes nothing."""
        model, cut, index = self.model(source), cut_of(plan, self._me), plan.stage_of(self._me)
        span = plan.layers_of(self._me)
        computing = None
        if span is not None:
            layers = {i: await self._layer(source, i, cut) for i in range(span.first, span.last)}
            ends = span.last == plan.stages[-1].layers.last
            head = await self._head(source, cut.vocab) if cut.has_head(ends=ends) else None
            if plan.head:
                share = _share(head, cut.vocab)
                self._pipeline.heads.install(plan, share, model.traffic.hidden_size)
            if index is not None:
                computing = stage_of(model, span, idled(layers) if is_idle else layers, head)
                self._pipeline.install(Post(plan, index, computing, model.traffic))
        self._held[plan.plan_id] = Held(plan, model, computing)

    def unload(self, plan: PlanId) -> None:
        """Ends a plan; with the last one of a model, its weights go."""
        if plan in self._held:
            self._pipeline.end(plan)
            model = self._held.pop(plan).model
            if not any(one.model is model for one in self._held.values()):
                self._parts.clear()

    def open(self, plan_id: PlanId, session: SessionId, owner: PeerId, *, told: bool) -> None:
        """Room for a conversation, where this device has layers; with `told`, the most probable
        tokens of a decoder's answer come with it.
        """
        held = self._held[plan_id]
        if held.computing is None:
            return
        plan, logprobs = held.plan, LOGPROBS if told else None
        sampling = Sampling(logprobs=logprobs if held.model.traffic.source is None else None)
        context = plan.capacity.context
        self._pipeline.open(OpenSession(plan.epoch, plan_id, session, owner, sampling, context))

    async def _layer(self, source: Source, index: int, cut: Cut) -> Any:
        key = (source, index, cut.of_layers)
        if key not in self._parts:
            load = self._models[source].load_layer
            self._parts[key] = await self._worker.run(load, index, CPU, cut)
        return self._parts[key]

    async def _head(self, source: Source, vocab: Span | None) -> Any:
        key = (source, vocab)
        if key not in self._parts:
            self._parts[key] = await self._worker.run(self._models[source].load_head, CPU, vocab)
        return self._parts[key]


def _share(head: Any, vocab: Span | None) -> HeadShare | None:
    """This device's rows of a head that is cut."""
    if not isinstance(head, Head) or not vocab:
        return None
    return HeadShare(head, vocab, CPU)
