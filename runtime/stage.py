"""A stage: this device's run of layers under one plan. Pure compute, for the worker thread."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mesh.ids import SessionId
from planner.plan import Span
from runtime.kv_cache import SessionCache
from runtime.models.block import Block
from runtime.sampling import Sampling, sample
from runtime.weights import Checkpoint, Head


class Stage:
    """Layers [first, last) of a model; the first stage embeds, the last has the head."""

    def __init__(
        self, checkpoint: Checkpoint, span: Span, blocks: Mapping[int, Block], head: Head | None
    ) -> None:
        self.span = span
        self.embeds = span.first == 0
        self._checkpoint = checkpoint
        self._blocks = [blocks[index] for index in range(span.first, span.last)]
        self._head = head
        self._open: dict[SessionId, tuple[SessionCache, Sampling]] = {}

    def open(self, session: SessionId, sampling: Sampling, context: int) -> None:
        """Makes an empty cache; what the session held before is forgotten."""
        cache = SessionCache(self._checkpoint.spec, self.span, context)
        self._open[session] = (cache, sampling)

    def close(self, session: SessionId) -> None:
        self._open.pop(session, None)

    @torch.inference_mode()
    def step(
        self, session: SessionId, position: int, rows: torch.Tensor, choose: bool
    ) -> torch.Tensor | None:
        """Runs tokens at `position`.. through this stage's layers.

        `rows` is [S, 1] int32 token ids on the first stage, [S, hidden] elsewhere. Returns
        [S, hidden] for the next stage; on the last stage [1, 1] int32 with the next token, or None
        when nothing is to be chosen or the session is closed. The same step may come twice:
        whatever the caches hold from `position` on is forgotten first, so the answer is the same.
        """
        opened = self._open.get(session)
        if opened is None:  # closed while the step waited for the worker
            return None
        # Taken at once: the loop may close the session while this thread computes.
        cache, sampling = opened
        cache.truncate(position)
        hidden = self._checkpoint.embed(rows[:, 0]) if self.embeds else rows  # [S, hidden]
        for block, layer_cache in zip(self._blocks, cache.layers, strict=True):
            hidden = block.forward(hidden, position, layer_cache)
        if self._head is None:
            return hidden
        if not choose:
            return None
        logits = self._head.logits(hidden[-1:])[0]  # [V]
        next_position = position + rows.shape[0]
        token = sample(logits, sampling, next_position)
        return torch.tensor([[token]], dtype=torch.int32)
