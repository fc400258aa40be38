"""Holdings: the weights this device keeps in memory, from one plan to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.ids import ModelId
from planner.plan import Span
from planner.profile import ModelProfile
from runtime.checkpoints import Model
from runtime.post import Computing
from runtime.stages import stage_of
from runtime.worker import Worker


@dataclass(slots=True)
class Held:
    """Layers and head of one model, in one precision."""

    checkpoint: Model
    profile: ModelProfile
    blocks: dict[int, Any] = field(default_factory=dict)  # what its `load_layer` returned
    head: Any = None

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.blocks))

    @property
    def has_head(self) -> bool:
        return self.head is not None

    @property
    def size_bytes(self) -> int:
        """What these weights weigh."""
        held = sum(self.profile.layers[index].weight_bytes for index in self.blocks)
        return held + (self.profile.head_bytes if self.head is not None else 0)

    def is_of(self, checkpoint: Model) -> bool:
        """Whether these are the weights of the checkpoint, in its precision."""
        mine = self.checkpoint
        return (mine.model_id, mine.precision) == (checkpoint.model_id, checkpoint.precision)


class Holdings:
    """Of each model what its plan needs. A new plan loads only what is missing."""

    def __init__(self, worker: Worker, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._worker = worker
        self._held: dict[ModelId, Held] = {}

    @property
    def models(self) -> Mapping[ModelId, Held]:
        """What is in memory, by model."""
        return self._held

    @property
    def size_bytes(self) -> int:
        """What all weights in memory weigh."""
        return sum(held.size_bytes for held in self._held.values())

    async def load(
        self, checkpoint: Model, span: Span, beside_bytes: int, make_room: Callable[[], None]
    ) -> Computing:
        """Brings the layers of `span` (and the head, if it ends the model) into memory.

        What the model's old plan used stays until `release`, so that it can go on meanwhile. Where
        both together, `beside_bytes` for caches and scratch, and the other models' weights exceed
        the memory limit, `make_room` is called, which must end the old plan's stage, and what the
        new plan does not need goes first. Raises BadModelFile when the file turns out to be
        damaged.
        """
        model = checkpoint.model_id
        held = self._held.get(model)
        kept = held if held is not None and held.is_of(checkpoint) else None
        profile = checkpoint.profile()
        wants_head = span.last == len(profile.layers)
        missing = [i for i in range(span.first, span.last) if kept is None or i not in kept.blocks]
        needs_head = wants_head and (kept is None or kept.head is None)
        to_load = sum(profile.layers[index].weight_bytes for index in missing)
        to_load += profile.head_bytes if needs_head else 0
        is_full = self.size_bytes + to_load + beside_bytes > self.memory_bytes
        if held is not None and (is_full or kept is None):
            make_room()
            self.release(model, span)
        del held  # or a dropped precision would stay in memory until the new one is there
        if kept is None:
            kept = self._held[model] = Held(checkpoint, profile)
        # One layer a turn, so that the steps of a plan still running come in between.
        for index in missing:
            kept.blocks[index] = await self._worker.run(checkpoint.load_layer, index)
        if needs_head:
            kept.head = await self._worker.run(checkpoint.load_head)
        return stage_of(checkpoint, span, kept.blocks, kept.head if wants_head else None)

    def release(self, model: ModelId, keep: Span) -> None:
        """Of a model, lets go of the layers outside `keep`, and of the head unless it ends it."""
        held = self._held.get(model)
        if held is None:
            return
        held.blocks = {index: block for index, block in held.blocks.items() if index in keep}
        if keep.last != len(held.profile.layers):
            held.head = None

    def drop(self, model: ModelId) -> None:
        """Lets go of all that is held of a model."""
        self._held.pop(model, None)
