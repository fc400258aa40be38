"""The decoder block that all families share: smallest part first.

A step may hold the tokens of several sessions, a run of rows each: all rows share the linear maps,
and each run attends to its own cache.

Shapes: S tokens of this step, all runs together; N tokens of one run; T tokens in its cache;
H query heads, K key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.compute import kernels
from runtime.compute.linear import Linear
from runtime.kv_cache import LayerCache
from runtime.models.rope import Rope, rotate
from runtime.models.spec import Activation, DecoderSpec, NormKind

ACTIVATIONS: Final[Mapping[Activation, Callable[[Tensor], Tensor]]] = {
    Activation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    Activation.GELU: F.gelu,
    Activation.SILU: F.silu,
    Activation.RELU: F.relu,
    Activation.TANH: torch.tanh,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One session's rows [first, first + count) of a step, and where they stand in its text."""

    first: int
    count: int
    position: int  # of the first row's token
    cache: LayerCache  # of this layer: holds the tokens before `position`, afterwards these too


class RMSNorm(nn.Module):
    """x / rms(x) * weight. The weight is the whole factor: no 1 is added to it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(size)
        self._is_fast = kernels.can_norm(size)

    def forward(self, x: Tensor) -> Tensor:
        if self._is_fast:
            return kernels.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean(x)) / deviation(x) * weight + bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = _parameter(size), _parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def hidden_norm(spec: DecoderSpec) -> RMSNorm | LayerNorm:
    """The norm that this family puts on hidden states."""
    kind = RMSNorm if spec.norm is NormKind.RMS else LayerNorm
    return kind(spec.hidden_size, spec.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention over the caches; `window` bounds how far back a token sees."""

    def __init__(self, spec: DecoderSpec, window: int | None, rope: Rope | None) -> None:
        super().__init__()
        self.spec = spec
        self.window = window
        self.rope = rope
        self.qkv = Linear(spec.query_size + 2 * spec.kv_size, spec.hidden_size, bias=spec.qkv_bias)
        self.output = Linear(spec.hidden_size, spec.query_size, bias=spec.output_bias)
        self.query_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.key_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None

    def forward(self, x: Tensor, runs: Sequence[Run]) -> Tensor:
        """[S, hidden] -> [S, hidden]"""
        spec = self.spec
        qkv = self.qkv(x).view(x.shape[0], -1, spec.head_dim)  # [S, H + 2 K, D]
        by_head = qkv.transpose(0, 1)  # [H + 2 K, S, D]
        q, k = by_head[: spec.heads], by_head[spec.heads : spec.heads + spec.kv_heads]
        v = by_head[spec.heads + spec.kv_heads :]
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rope is not None:
            angles = self.rope.angles(tuple((run.position, run.count) for run in runs))
            q, k = rotate(q, angles), rotate(k, angles)
        outs = [self._run(q, k, v, run) for run in runs]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)  # [H, S, D]
        added: Tensor = self.output(out.transpose(0, 1).reshape(x.shape[0], -1))  # [S, hidden]
        return added

    def _run(self, q: Tensor, k: Tensor, v: Tensor, run: Run) -> Tensor:
        """One session's rows of q [H, S, D], k and v [K, S, D] over its cache: [H, N, D]"""
        rows = slice(run.first, run.first + run.count)
        keys, values, first = run.cache.append(run.position, k[:, rows], v[:, rows])  # [K, T, D]
        return self._attend(q[:, rows], keys, values, run.position, first)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, position: int, first: int) -> Tensor:
        """q [H, S, D] at `position`.. over keys and values [K, T, D] at `first`.."""
        heads, count, dim = q.shape
        tokens, mask = keys.shape[1], None
        # From the beginning on, each token sees all before it: torch knows that without a mask.
        is_causal = count > 1 and count == tokens and (self.window is None or tokens <= self.window)
        if count == 1:  # the cache returns just what one token sees: no mask, one pass a KV head
            q = q.reshape(keys.shape[0], -1, dim)  # [K, H/K, D]
        elif not is_causal:
            mask = visible(position, count, first, tokens, self.window)  # [S, T]
        out = F.scaled_dot_product_attention(
            q[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=is_causal,
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
    """down(activation(up(x)))."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[spec.activation]
        self.up = Linear(spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)
        self.down = Linear(spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.activate(self.up(x)))  # [S, ffn] -> [S, hidden]
        return down


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[spec.activation]
        self.gate_up = Linear(2 * spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)
        self.down = Linear(spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # [S, ffn]
        down: Tensor = self.down(self.activate(gate).mul_(up))  # [S, hidden]
        return down


class Block(nn.Module):
    """One layer. Its parameters are made empty; `runtime.weights` fills them."""

    def __init__(self, spec: DecoderSpec, index: int, rope: Rope | None) -> None:
        """`rope` is that of the layer's spec: None where positions are learned."""
        super().__init__()
        self.index = index
        self.attention_norm = hidden_norm(spec)
        self.attention = Attention(spec, spec.layers[index].window, rope)
        self.attention_post_norm = hidden_norm(spec) if spec.post_norm else None
        self.mlp_norm = hidden_norm(spec)
        self.mlp = GatedMLP(spec) if spec.gated else MLP(spec)
        self.mlp_post_norm = hidden_norm(spec) if spec.post_norm else None

    def forward(self, hidden: Tensor, runs: Sequence[Run]) -> Tensor:
        """[S, hidden] -> [S, hidden]; the runs are disjoint, in order, and make up all S rows."""
        added = self.attention(self.attention_norm(hidden), runs)
        if self.attention_post_norm is not None:
            added = self.attention_post_norm(added)
        hidden = hidden + added
        added = self.mlp(self.mlp_norm(hidden))
        if self.mlp_post_norm is not None:
            added = self.mlp_post_norm(added)
        return hidden.add(added)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=False)
