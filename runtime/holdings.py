"""Holdings: the weights this device keeps in memory, from one plan to the next."""

from __future__ import annotations

from collections.abc import Callable

from mesh.ids import ModelId
from planner.plan import Span
from planner.profile import ModelProfile
from runtime.models.block import Block
from runtime.stage import Stage
from runtime.weights import Checkpoint, Head
from runtime.worker import Worker


class Holdings:
    """Layers and head of one model. A new plan loads only what is missing."""

    def __init__(self, worker: Worker, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._worker = worker
        self._checkpoint: Checkpoint | None = None
        self._profile: ModelProfile | None = None
        self._blocks: dict[int, Block] = {}
        self._head: Head | None = None

    @property
    def model(self) -> ModelId | None:
        return self._checkpoint.model_id if self._checkpoint else None

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self._blocks))

    @property
    def has_head(self) -> bool:
        return self._head is not None

    @property
    def size_bytes(self) -> int:
        """What the weights in memory weigh."""
        if self._profile is None:
            return 0
        held = sum(self._profile.layers[index].weight_bytes for index in self._blocks)
        return held + (self._profile.head_bytes if self._head is not None else 0)

    async def load(
        self, checkpoint: Checkpoint, span: Span, beside_bytes: int, make_room: Callable[[], None]
    ) -> Stage:
        """Brings the layers of `span` (and the head, if it ends the model) into memory.

        What the old plan used stays until `release`, so that it can go on meanwhile. Where both
        together, and `beside_bytes` for the new plan's caches and scratch, exceed the memory
        limit, `make_room` is called, which must end the old plan's stage, and what the new plan
        does not need goes first. Raises BadModelFile when the file turns out to be damaged.
        """
        profile = checkpoint.profile()
        wants_head = span.last == len(profile.layers)
        is_same = self._holds(checkpoint)
        missing = [i for i in range(span.first, span.last) if not is_same or i not in self._blocks]
        needs_head = wants_head and (not is_same or self._head is None)
        to_load = sum(profile.layers[index].weight_bytes for index in missing)
        to_load += profile.head_bytes if needs_head else 0
        is_full = self.size_bytes + to_load + beside_bytes > self.memory_bytes
        if is_full or (self.model is not None and not is_same):
            make_room()
            self.release(span)
        if not is_same:
            self.clear()
            self._checkpoint, self._profile = checkpoint, profile
        # One layer a turn, so that the steps of a plan still running come in between.
        for index in missing:
            self._blocks[index] = await self._worker.run(checkpoint.load_layer, index)
        if needs_head:
            self._head = await self._worker.run(checkpoint.load_head)
        return Stage(checkpoint, span, self._blocks, self._head if wants_head else None)

    def _holds(self, checkpoint: Checkpoint) -> bool:
        """Whether what is in memory is of this model, and in its precision."""
        held = self._checkpoint
        return held is not None and (held.model_id, held.precision) == (
            checkpoint.model_id,
            checkpoint.precision,
        )

    def release(self, keep: Span) -> None:
        """Lets go of the layers outside `keep`, and of the head unless `keep` ends the model."""
        self._blocks = {i: block for i, block in self._blocks.items() if i in keep}
        if self._profile is not None and keep.last != len(self._profile.layers):
            self._head = None

    def clear(self) -> None:
        """Lets go of everything."""
        self._checkpoint, self._profile, self._head = None, None, None
        self._blocks = {}
