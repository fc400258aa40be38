"""The end of a decoder: the final norm and the vocabulary head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.models.block import RMSNorm
from runtime.models.spec import DecoderSpec


class Head(nn.Module):
    """Hidden states to logits. The parameters are made empty; `runtime.weights` fills them."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.softcap = spec.logit_softcap
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        weight = torch.empty(spec.vocabulary, spec.hidden_size, dtype=torch.float32)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, V]"""
        logits = F.linear(self.norm(hidden), self.weight)
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap
