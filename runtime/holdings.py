"""Holdings: the weights this device keeps in memory, from one plan to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mesh.ids import ModelId
from planner.plan import Span
from planner.profile import ModelProfile
from runtime.checkpoints import Model
from runtime.compute.torch_device import CPU
from runtime.cut import WHOLE, Cut
from runtime.post import Computing
from runtime.stages import stage_of
from runtime.worker import Worker


@dataclass(slots=True)
class Held:
    """Layers and head of one model, in one precision, or shares of them."""

    checkpoint: Model
    profile: ModelProfile
    # What its `load_layer` returned, by the layer and `Cut.of_layers`.
    blocks: dict[tuple[int, Cut], Any] = field(default_factory=dict)
    # What its `load_head` returned, by the rows of the vocabulary; None: all.
    heads: dict[Span | None, Any] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({index for index, _ in self.blocks}))

    @property
    def has_head(self) -> bool:
        return bool(self.heads)

    @property
    def size_bytes(self) -> int:
        """What these weights weigh."""
        held = sum(self.layer_bytes(index, cut) for index, cut in self.blocks)
        return held + sum(self.head_bytes(vocab) for vocab in self.heads)

    def layer_bytes(self, index: int, cut: Cut) -> int:
        """What a share of a layer weighs. Raises PlanError for a share of nothing."""
        kind = self.profile.cut_of(index)
        assert kind is not None, "a checkpoint says how its layers are cut"
        extent = self.checkpoint.extent_of(index, cut)
        return kind.share_bytes(extent.heads, extent.columns)

    def head_bytes(self, vocab: Span | None) -> int:
        """What these rows of the head weigh, with the norm in front of them."""
        rows = self.profile.vocabulary if vocab is None else len(vocab)
        return -(-self.profile.head_bytes * rows // self.profile.vocabulary)

    def is_of(self, checkpoint: Model) -> bool:
        """Whether these are the weights of the checkpoint, in its precision."""
        mine = self.checkpoint
        return (mine.model_id, mine.precision) == (checkpoint.model_id, checkpoint.precision)


class Holdings:
    """Of each model what its plan needs. A new plan loads only what is missing."""

    def __init__(self, worker: Worker, memory_bytes: int, device: torch.device = CPU) -> None:
        """`memory_bytes` is what may be used of the memory that `device` computes in."""
        self.memory_bytes = memory_bytes
        self.device = device
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
        self,
        checkpoint: Model,
        span: Span,
        beside_bytes: int,
        make_room: Callable[[], None],
        cut: Cut = WHOLE,
    ) -> Computing:
        """Brings the layers of `span`, or shares of them, into memory, and the head, or rows of it,
        as the cut says.

        What the model's old plan used stays until `release`, so that it can go on meanwhile. Where
        both together, `beside_bytes` for caches and scratch, and the other models' weights exceed
        the memory limit, `make_room` is called, which must end the old plan's stage, and what the
        new plan does not need goes first. Raises BadModelFile when the file turns out to be
        damaged, PlanError for a cut of nothing.
        """
        model = checkpoint.model_id
        held = self._held.get(model)
        kept = held if held is not None and held.is_of(checkpoint) else None
        wanted = kept or Held(checkpoint, checkpoint.profile(self.device))
        missing = [
            index
            for index in range(span.first, span.last)
            if (index, cut.of_layers) not in wanted.blocks
        ]
        wants_head = _has_head(wanted, span, cut)
        needs_head = wants_head and cut.vocab not in wanted.heads
        to_load = sum(wanted.layer_bytes(index, cut) for index in missing)
        to_load += wanted.head_bytes(cut.vocab) if needs_head else 0
        is_full = self.size_bytes + to_load + beside_bytes > self.memory_bytes
        if held is not None and (is_full or kept is None):
            make_room()
            self.release(model, span, cut)
        del held, kept  # or a dropped precision would stay in memory until the new one is there
        self._held[model] = wanted
        # One layer a turn, so that the steps of a plan still running come in between.
        for index in missing:
            block = await self._worker.run(checkpoint.load_layer, index, self.device, cut)
            wanted.blocks[index, cut.of_layers] = block
        if needs_head:
            head = await self._worker.run(checkpoint.load_head, self.device, cut.vocab)
            wanted.heads[cut.vocab] = head
        blocks = {
            index: wanted.blocks[index, cut.of_layers] for index in range(span.first, span.last)
        }
        head = wanted.heads[cut.vocab] if wants_head else None
        return stage_of(checkpoint, span, blocks, head, self.device)

    def release(self, model: ModelId, keep: Span, cut: Cut = WHOLE) -> None:
        """Of a model, lets go of the layers outside `keep` and of other shares of those in it, and
        of rows of the head that the cut has not.
        """
        held = self._held.get(model)
        if held is None:
            return
        held.blocks = {
            (index, of): block
            for (index, of), block in held.blocks.items()
            if index in keep and of == cut.of_layers
        }
        has_head = _has_head(held, keep, cut)
        held.heads = {v: head for v, head in held.heads.items() if has_head and v == cut.vocab}

    def drop(self, model: ModelId) -> None:
        """Lets go of all that is held of a model."""
        self._held.pop(model, None)


def _has_head(held: Held, span: Span, cut: Cut) -> bool:
    return cut.has_head(ends=span.last == len(held.profile.layers))
