"""The decoder block that all families share: smallest part first. One session at a time, fp32.

Shapes: S tokens of this step, T tokens in the cache, H query heads, K key/value heads, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.kv_cache import LayerCache
from runtime.models.spec import Activation, DecoderSpec, RopeSpec

ROPE_GROWTH_TOKENS = 512  # rows added to a rope's tables at once


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The weight is the whole factor: no 1 is added to it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Rope:
    """Rotary positions for one base: tables that grow with the longest conversation so far."""

    def __init__(self, spec: RopeSpec, head_dim: int) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self._frequencies = 1.0 / (spec.base**exponents) / spec.factor  # [D/2]
        self._cos = self._sin = torch.empty(0, head_dim // 2)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """x [.., S, D] of the tokens at `position`.., each pair (i, i + D/2) turned."""
        end = position + x.shape[-2]
        if end > self._cos.shape[0]:
            self._grow(end)
        cos, sin = self._cos[position:end], self._sin[position:end]  # [S, D/2]
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    def _grow(self, end: int) -> None:
        rows = -(-end // ROPE_GROWTH_TOKENS) * ROPE_GROWTH_TOKENS
        with torch.inference_mode(False):  # or a later training step could not use the tables
            angles = torch.arange(rows, dtype=torch.float32)[:, None] * self._frequencies
            self._cos, self._sin = angles.cos(), angles.sin()


class Attention(nn.Module):
    """Grouped-query attention over the cache; `window` bounds how far back a token sees."""

    def __init__(self, spec: DecoderSpec, window: int | None, rope: Rope) -> None:
        super().__init__()
        self.spec = spec
        self.window = window
        self.rope = rope
        self.qkv = _parameter(spec.query_size + 2 * spec.kv_size, spec.hidden_size)
        self.output = _parameter(spec.hidden_size, spec.query_size)
        self.query_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.key_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None

    def forward(self, x: Tensor, position: int, cache: LayerCache) -> Tensor:
        spec = self.spec
        qkv = F.linear(x, self.qkv).view(x.shape[0], -1, spec.head_dim)  # [S, H + 2 K, D]
        by_head = qkv.transpose(0, 1)  # [H + 2 K, S, D]
        q, k = by_head[: spec.heads], by_head[spec.heads : spec.heads + spec.kv_heads]
        v = by_head[spec.heads + spec.kv_heads :]
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = self.rope.rotate(q, position), self.rope.rotate(k, position)
        keys, values, first = cache.append(position, k, v)  # [K, T, D]
        out = self._attend(q, keys, values, position, first)  # [H, S, D]
        return F.linear(out.transpose(0, 1).reshape(x.shape[0], -1), self.output)  # [S, hidden]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, position: int, first: int) -> Tensor:
        """q [H, S, D] at `position`.. over keys and values [K, T, D] at `first`.."""
        heads, count, dim = q.shape
        if count == 1:  # the cache returns just what one token sees: no mask, one pass a KV head
            q = q.reshape(keys.shape[0], -1, dim)  # [K, H/K, D]
            mask = None
        else:
            mask = visible(position, count, first, keys.shape[1], self.window)  # [S, T]
        out = F.scaled_dot_product_attention(
            q[None],
            keys[None],
            values[None],
            attn_mask=mask,
            scale=self.spec.query_scale,
            enable_gqa=q.shape[0] != keys.shape[0],
        )
        return out.reshape(heads, count, dim)


def visible(position: int, count: int, first: int, tokens: int, window: int | None) -> Tensor:
    """[S, T] bool: may the token at position + s see the one at first + t?"""
    queries = torch.arange(position, position + count)[:, None]
    keys = torch.arange(first, first + tokens)[None, :]
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gate_up = _parameter(2 * spec.ffn_size, spec.hidden_size)
        self.down = _parameter(spec.hidden_size, spec.ffn_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.gate_up).chunk(2, dim=-1)  # [S, ffn]
        return F.linear(_activate(gate, self.activation) * up, self.down)  # [S, hidden]


class Block(nn.Module):
    """One layer. Its parameters are made empty; `runtime.weights` fills them."""

    def __init__(self, spec: DecoderSpec, index: int, rope: Rope) -> None:
        super().__init__()
        size, eps = spec.hidden_size, spec.norm_eps
        self.index = index
        self.attention_norm = RMSNorm(size, eps)
        self.attention = Attention(spec, spec.layers[index].window, rope)
        self.attention_post_norm = RMSNorm(size, eps) if spec.post_norm else None
        self.mlp_norm = RMSNorm(size, eps)
        self.mlp = MLP(spec)
        self.mlp_post_norm = RMSNorm(size, eps) if spec.post_norm else None

    def forward(self, hidden: Tensor, position: int, cache: LayerCache) -> Tensor:
        """[S, hidden] -> [S, hidden] for the S tokens at `position`..

        `cache` holds this layer's tokens before `position`, and afterwards these as well.
        """
        added = self.attention(self.attention_norm(hidden), position, cache)
        if self.attention_post_norm is not None:
            added = self.attention_post_norm(added)
        hidden = hidden + added
        added = self.mlp(self.mlp_norm(hidden))
        if self.mlp_post_norm is not None:
            added = self.mlp_post_norm(added)
        return hidden.add(added)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case Activation.GELU_TANH:
            return F.gelu(x, approximate="tanh")
        case Activation.SILU:
            return F.silu(x)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=False)
