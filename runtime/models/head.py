"""The end of a decoder: the final norm and the vocabulary head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.compute.linear import Linear
from runtime.models.norms import hidden_norm
from runtime.models.spec import DecoderSpec


class Head(nn.Module):
    """Hidden states to logits. The parts are made empty; `runtime.weights` fills them."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.softcap = spec.logit_softcap
        self.norm = hidden_norm(spec)
        self.output = Linear(spec.vocabulary, spec.hidden_size)

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, V]"""
        logits: Tensor = self.output(self.norm(hidden))
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap
