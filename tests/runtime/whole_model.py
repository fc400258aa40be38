"""A whole model on one device, without stages or network: what every split is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.plan import Span
from runtime.heads.question import Choice, draw
from runtime.kv_cache import SessionCache
from runtime.models.block import Run
from runtime.sampling import Sampling
from runtime.weights import Checkpoint


class WholeModel:
    """All layers and the head of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.blocks = [checkpoint.load_layer(index) for index in range(len(self.spec.layers))]
        self.head = checkpoint.load_head()

    def new_cache(self) -> SessionCache:
        return SessionCache(self.spec, Span(0, len(self.blocks)), self.spec.context)

    @torch.inference_mode()
    def hidden(self, tokens: list[int], position: int, cache: SessionCache) -> Tensor:
        """[S, hidden] of tokens at `position`.. after the last layer."""
        positions = torch.arange(position, position + len(tokens))
        hidden = self.checkpoint.embed(torch.tensor(tokens, dtype=torch.int32), positions)
        for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
            hidden = block(hidden, (Run(0, len(tokens), position, layer_cache),))
        return hidden

    @torch.inference_mode()
    def logits(self, tokens: list[int], position: int, cache: SessionCache) -> Tensor:
        """[V] after the last of `tokens`."""
        return self.head.logits(self.hidden(tokens, position, cache)[-1:])[0]

    def prefill(self, tokens: list[int], cache: SessionCache, chunk: int = 512) -> Tensor:
        """[V] after the last of `tokens`, sent in chunks."""
        for first in range(0, len(tokens), chunk):
            logits = self.logits(tokens[first : first + chunk], first, cache)
        return logits

    def generate(
        self, prompt: list[int], count: int, sampling: Sampling | None = None, chunk: int = 512
    ) -> tuple[list[int], Tensor]:
        """`count` tokens one by one, and the logits [count, V] that each was chosen from."""
        cache, chosen, rows = self.new_cache(), [], []
        logits = self.prefill(prompt, cache, chunk)
        for position in range(len(prompt), len(prompt) + count):
            rows.append(logits)
            chosen.append(draw(logits, Choice(sampling or Sampling(), position, None)).token)
            if len(chosen) < count:
                logits = self.logits(chosen[-1:], position, cache)
        return chosen, torch.stack(rows)
