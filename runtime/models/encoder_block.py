"""The parts that encoders and encoder-decoders share, smallest first. One sequence at a time.

Shapes: S rows of this pass, T rows that are attended to, H heads, D head dim. The parameters are
made empty; `runtime.seq2seq.weights` fills them.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.compute.linear import Linear
from runtime.compute.torch_device import CPU
from runtime.models.mlp import ACTIVATIONS
from runtime.models.norms import parameter
from runtime.models.parts import Part, check_share, through
from runtime.models.seq2seq_spec import (
    RelativePositions,
    Seq2SeqSpec,
    StackSpec,
)
from runtime.models.spec import NormKind

# A bias has a number for each head, row and row that it sees: so many rows take 25 MB of it where
# 12 heads see 2048 tokens, and all of them 200.
ROWS_AT_ONCE: Final = 256


class Norm(nn.Module):
    """Layer norm or RMS norm over the last dim."""

    def __init__(self, kind: NormKind, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter(size)
        self.bias = parameter(size) if kind is NormKind.LAYER else None

    @classmethod
    def of(cls, spec: Seq2SeqSpec) -> Norm:
        return cls(spec.norm, spec.hidden_size, spec.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-1],)
        if self.bias is None:
            return F.rms_norm(x, size, self.weight, self.eps)
        return F.layer_norm(x, size, self.weight, self.bias, self.eps)


class RelativeBias(nn.Module):
    """What is added to attention logits, by head and by distance in tokens."""

    def __init__(self, relative: RelativePositions, heads: int, *, both_ways: bool) -> None:
        super().__init__()
        self.relative = relative
        self.both_ways = both_ways
        self.weight = parameter(relative.buckets, heads)

    def forward(self, position: int, count: int, tokens: int) -> Tensor:
        """[H, S, T] for queries at `position`.. over keys at 0.."""
        where = self.weight.device
        buckets = _buckets(self.relative, position, count, tokens, self.both_ways, where)  # [S, T]
        return self.weight[buckets].permute(2, 0, 1)


class SelfAttention(nn.Module):
    """Attention of rows to one another. Who uses it says over which rows; with `causal` each sees
    itself and those before it.
    """

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec, *, causal: bool) -> None:
        super().__init__()
        self.stack = stack
        self.causal = causal
        self.scale = query_scale(spec, stack)
        self.qkv = Linear(3 * stack.inner_size, spec.hidden_size, bias=spec.biased)
        self.output = closing(spec, stack.inner_size)
        relative = spec.relative
        self.bias = (
            None if relative is None else RelativeBias(relative, stack.heads, both_ways=not causal)
        )

    @property
    def opening(self) -> Linear:
        return self.qkv

    @property
    def closing(self) -> Linear:
        return self.output

    def project(self, opened: Tensor, at: object) -> tuple[Tensor, Tensor, Tensor]:
        """[S, 3 * H * D] to queries, keys and values [H, S, D], wherever the rows stand."""
        by_head = opened.view(-1, 3, self.stack.heads, self.stack.head_dim)  # [S, 3, H, D]
        q, k, v = by_head.permute(1, 2, 0, 3)
        return q, k, v

    def look(self, q: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """q [H, S, D] at `position`.. over keys and values [H, T, D] at 0..: [S, H * D]"""
        most = q.shape[1] if self.bias is None else ROWS_AT_ONCE
        parts = [
            self._seen(q[:, first : first + most], keys, values, position + first)
            for first in range(0, q.shape[1], most)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _seen(self, q: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """The same for a few rows."""
        count, tokens = q.shape[1], keys.shape[1]
        mask: Tensor | None = None
        if self.bias is not None:
            mask = self.bias(position, count, tokens)  # [H, S, T]
        if self.causal and count > 1:
            seen = torch.zeros(count, tokens, device=q.device)  # [S, T]
            later = torch.ones_like(seen, dtype=torch.bool).triu(position + 1)
            hidden = seen.masked_fill(later, -torch.inf)
            mask = hidden if mask is None else mask + hidden
        return attention(q, keys, values, mask, self.scale)


class SourceAttention(SelfAttention):
    """An encoder's: all see all."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        super().__init__(spec, spec.encoder, causal=False)

    def inside(self, opened: Tensor, at: int | None) -> Tensor:
        """[S, 3 * H * D] -> [S, H * D]"""
        return self.attend(*self.project(opened, at), at)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, at: int | None) -> Tensor:
        """q [H, S, D] of the rows from `at` on (None: from the first) over the keys and values of
        all rows [H, T, D]: [S, H * D]
        """
        return self.look(q, keys, values, at or 0)


class MLP(nn.Module):
    """down(activation(up(x))), or with a gate in the same matrix: activation(gate(x)) * up(x)."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gated = spec.gated
        self.up = Linear(stack.ffn_size * (1 + spec.gated), spec.hidden_size, bias=spec.biased)
        self.down = closing(spec, stack.ffn_size)

    @property
    def opening(self) -> Linear:
        return self.up

    @property
    def closing(self) -> Linear:
        return self.down

    def inside(self, opened: Tensor, at: object) -> Tensor:
        """[S, ffn], or twice that, -> [S, ffn], wherever the rows stand."""
        if not self.gated:
            return ACTIVATIONS[self.activation](opened)
        gate, up = opened.chunk(2, dim=-1)
        return ACTIVATIONS[self.activation](gate) * up


class Stream(nn.Module):
    """What a layer does around its parts: sums, and a norm in front of each part or behind it."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        super().__init__()
        self.pre_norm = spec.pre_norm
        self.norms: tuple[Norm, ...] = ()  # one for each part

    def enter(self, hidden: Tensor) -> Tensor:
        return self.norms[0].forward(hidden) if self.pre_norm else hidden

    def connect(self, index: int, hidden: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        total, norms = hidden + added, self.norms
        if not self.pre_norm:
            total = norms[index].forward(total)
            return total, total
        if index + 1 == len(norms):
            return total, total
        return total, norms[index + 1].forward(total)


class EncoderLayer(Stream):
    """One layer of the encoder, or a share of one."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        """Raises PlanError for a share without heads or columns."""
        super().__init__(spec)
        check_share(spec.encoder.heads, spec.encoder.ffn_size)
        self.attention = SourceAttention(spec)
        self.attention_norm = Norm.of(spec)
        self.mlp = MLP(spec, spec.encoder)
        self.mlp_norm = Norm.of(spec)
        self.parts: tuple[Part[int | None], ...] = (self.attention, self.mlp)
        self.norms = (self.attention_norm, self.mlp_norm)

    def forward(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, hidden]"""
        return through(self, hidden, None)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[H, S, D] over [H, T, D]: all heads side by side, [S, H * D]. `mask` is added."""
    bias = None if mask is None else mask[None]
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias, scale=scale)
    return out[0].transpose(0, 1).reshape(q.shape[1], -1)


def closing(spec: Seq2SeqSpec, columns: int) -> Linear:
    """The last map of a part."""
    return Linear(spec.hidden_size, columns, bias=spec.biased and spec.closing_bias)


def query_scale(spec: Seq2SeqSpec, stack: StackSpec) -> float:
    return stack.head_dim**-0.5 if spec.scaled else 1.0


@functools.lru_cache(maxsize=16)  # every layer of a stack asks for the same; 2 MB each at most
def _buckets(
    relative: RelativePositions,
    position: int,
    count: int,
    tokens: int,
    both_ways: bool,
    device: torch.device = CPU,
) -> Tensor:
    """[S, T]: the bucket of each distance from a query at position + s to a key at t."""
    with torch.inference_mode(False):  # or a later training step could not use the table
        queries = torch.arange(position, position + count)[:, None]
        ahead = torch.arange(tokens)[None, :] - queries  # [S, T]
        buckets, first = relative.buckets, torch.zeros_like(ahead)
        if both_ways:
            buckets //= 2
            first = (ahead > 0) * buckets  # the upper half looks ahead
            distance = ahead.abs()
        else:
            distance = (-ahead).clamp(min=0)
        exact = buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact)
        growth = growth / math.log(relative.max_distance / exact) * (buckets - exact)
        far = (exact + growth.long()).clamp(max=buckets - 1)
        return (first + torch.where(distance < exact, distance, far)).int().to(device)
