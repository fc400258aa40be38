"""What keeps hidden states at one scale, and the sums between a decoder's parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.compute import pointwise
from runtime.models.spec import DecoderSpec, NormKind


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The weight is the whole factor: no 1 is added to it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(size)
        self.is_compiled = pointwise.fits(size)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_compiled:
            return pointwise.norm(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / deviation(x) * weight + bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = parameter(size), parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


Norm = RMSNorm | LayerNorm


def hidden_norm(spec: DecoderSpec) -> Norm:
    """The norm that this family puts on hidden states."""
    kind = RMSNorm if spec.norm is NormKind.RMS else LayerNorm
    return kind(spec.hidden_size, spec.norm_eps)


def residual(
    hidden: Tensor, added: Tensor, post: Norm | None, then: Norm | None
) -> tuple[Tensor, Tensor]:
    """(hidden + post(added), then(that)); without `then` the sum comes twice. All [S, hidden]."""
    norms = [norm for norm in (post, then) if norm is not None]
    if norms and all(isinstance(norm, RMSNorm) and norm.is_compiled for norm in norms):
        first, second = (None if norm is None else norm.weight for norm in (post, then))
        return pointwise.residual(hidden, added, first, second, norms[0].eps)
    total = hidden + (added if post is None else post(added))
    return total, total if then is None else then(total)


def parameter(*shape: int) -> nn.Parameter:
    """Empty, fp32."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=False)
