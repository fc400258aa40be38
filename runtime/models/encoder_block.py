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
from runtime.models.block import ACTIVATIONS
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
        buckets = _buckets(self.relative, position, count, tokens, self.both_ways)  # [S, T]
        return self.weight[buckets].permute(2, 0, 1)


class SelfAttention(nn.Module):
    """All see all, or, with `causal`, each row itself and those before it."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec, *, causal: bool) -> None:
        super().__init__()
        self.stack = stack
        self.causal = causal
        self.scale = query_scale(spec, stack)
        self.qkv = Linear(3 * stack.inner_size, spec.hidden_size, bias=spec.biased)
        self.output = Linear(spec.hidden_size, stack.inner_size, bias=spec.biased)
        relative = spec.relative
        self.bias = (
            None if relative is None else RelativeBias(relative, stack.heads, both_ways=not causal)
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [H, S, D] of rows [S, hidden]."""
        qkv = self.qkv(x).view(x.shape[0], 3, self.stack.heads, -1)  # [S, 3, H, D]
        q, k, v = qkv.permute(1, 2, 0, 3)
        return q, k, v

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, position: int = 0) -> Tensor:
        """q [H, S, D] at `position`.. over keys and values [H, T, D] at 0..: [S, hidden]"""
        most = q.shape[1] if self.bias is None else ROWS_AT_ONCE
        parts = [
            self._seen(q[:, first : first + most], keys, values, position + first)
            for first in range(0, q.shape[1], most)
        ]
        out: Tensor = self.output(torch.cat(parts) if len(parts) > 1 else parts[0])
        return out

    def _seen(self, q: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """The same before the last map: [S, H * D]"""
        count, tokens = q.shape[1], keys.shape[1]
        mask: Tensor | None = None
        if self.bias is not None:
            mask = self.bias(position, count, tokens)  # [H, S, T]
        if self.causal and count > 1:
            later = torch.ones(count, tokens, dtype=torch.bool).triu(position + 1)  # [S, T]
            hidden = torch.zeros(count, tokens).masked_fill(later, -torch.inf)
            mask = hidden if mask is None else mask + hidden
        return attention(q, keys, values, mask, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """[S, hidden] -> [S, hidden], without a cache."""
        return self.attend(*self.project(x))


class CrossAttention(nn.Module):
    """The target's rows look at what the encoder said, whose keys and values are made once."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec) -> None:
        super().__init__()
        self.heads = stack.heads
        self.scale = query_scale(spec, stack)
        self.query = Linear(stack.inner_size, spec.hidden_size, bias=spec.biased)
        self.key_value = Linear(2 * stack.inner_size, spec.hidden_size, bias=spec.biased)
        self.output = Linear(spec.hidden_size, stack.inner_size, bias=spec.biased)

    def remember(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [H, T, D] of the encoder's output [T, hidden]."""
        key_value = self.key_value(encoded).view(encoded.shape[0], 2, self.heads, -1)
        keys, values = key_value.permute(1, 2, 0, 3)
        return keys.contiguous(), values.contiguous()

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[S, hidden] -> [S, hidden]"""
        q = self.query(x).view(x.shape[0], self.heads, -1).transpose(0, 1)  # [H, S, D]
        out: Tensor = self.output(attention(q, keys, values, None, self.scale))
        return out


class MLP(nn.Module):
    """down(activation(up(x))), or with a gate in the same matrix: activation(gate(x)) * up(x)."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gated = spec.gated
        self.up = Linear(stack.ffn_size * (1 + spec.gated), spec.hidden_size, bias=spec.biased)
        self.down = Linear(spec.hidden_size, stack.ffn_size, bias=spec.biased)

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.up(x)  # [S, ffn], or twice that
        if self.gated:
            gate, up = up.chunk(2, dim=-1)
            up = ACTIVATIONS[self.activation](gate) * up
        else:
            up = ACTIVATIONS[self.activation](up)
        down: Tensor = self.down(up)  # [S, hidden]
        return down


class EncoderLayer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        super().__init__()
        self.pre_norm = spec.pre_norm
        self.attention = SelfAttention(spec, spec.encoder, causal=False)
        self.attention_norm = Norm.of(spec)
        self.mlp = MLP(spec, spec.encoder)
        self.mlp_norm = Norm.of(spec)

    def forward(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, hidden]"""
        if self.pre_norm:
            hidden = hidden + self.attention(self.attention_norm(hidden))
            return hidden.add(self.mlp(self.mlp_norm(hidden)))
        hidden = self.attention_norm.forward(hidden + self.attention(hidden))
        return self.mlp_norm.forward(hidden + self.mlp(hidden))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[H, S, D] over [H, T, D]: all heads side by side, [S, H * D]. `mask` is added."""
    bias = None if mask is None else mask[None]
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias, scale=scale)
    return out[0].transpose(0, 1).reshape(q.shape[1], -1)


def query_scale(spec: Seq2SeqSpec, stack: StackSpec) -> float:
    return stack.head_dim**-0.5 if spec.scaled else 1.0


def parameter(*shape: int) -> nn.Parameter:
    """Empty, fp32."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=False)


@functools.lru_cache(maxsize=16)  # every layer of a stack asks for the same; 2 MB each at most
def _buckets(
    relative: RelativePositions, position: int, count: int, tokens: int, both_ways: bool
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
        return (first + torch.where(distance < exact, distance, far)).int()
