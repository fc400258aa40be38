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

from runtime.compute import pointwise
from runtime.compute.kinds import Gate, Heads
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


# What is compiled for a gate; the others are torch's.
GATES: Final[Mapping[Activation, Gate]] = {
    Activation.GELU_TANH: Gate.GELU_TANH,
    Activation.SILU: Gate.SILU,
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
        self.weight, self.bias = _parameter(size), _parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


Norm = RMSNorm | LayerNorm


def hidden_norm(spec: DecoderSpec) -> Norm:
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
        self._heads = Heads(
            spec.heads, spec.kv_heads, spec.head_dim, spec.qk_norm, rope is not None
        )
        self._is_compiled = pointwise.fits(spec.head_dim // 2) and spec.head_dim % 2 == 0

    def forward(self, x: Tensor, runs: Sequence[Run]) -> Tensor:
        """[S, hidden] -> [S, hidden]"""
        spec = self.spec
        by_head = self._by_head(self.qkv(x), runs)  # [H + 2 K, S, D]
        q, k = by_head[: spec.heads], by_head[spec.heads : spec.heads + spec.kv_heads]
        v = by_head[spec.heads + spec.kv_heads :]
        outs = [self._run(q, k, v, run) for run in runs]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)  # [H, S, D]
        added: Tensor = self.output(out.transpose(0, 1).reshape(x.shape[0], -1))  # [S, hidden]
        return added

    def _by_head(self, qkv: Tensor, runs: Sequence[Run]) -> Tensor:
        """[S, (H + 2 K) D] to [H + 2 K, S, D], queries and keys normed and turned."""
        angles = None
        if self.rope is not None:
            angles = self.rope.angles(tuple((run.position, run.count) for run in runs))
        norms = None
        if self.query_norm is not None and self.key_norm is not None:
            norms = (self.query_norm, self.key_norm)
        if self._is_compiled:
            weights = None if norms is None else (norms[0].weight, norms[1].weight)
            return pointwise.by_head(qkv, self._heads, weights, angles, self.spec.norm_eps)
        by_head = qkv.view(qkv.shape[0], -1, self.spec.head_dim).transpose(0, 1)
        values = self.spec.heads + self.spec.kv_heads
        q, k, v = by_head[: self.spec.heads], by_head[self.spec.heads : values], by_head[values:]
        if norms is not None:
            q, k = norms[0](q), norms[1](k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return torch.cat((q, k, v))

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
        gate = GATES.get(spec.activation)
        self._gate = gate if pointwise.fits(spec.ffn_size) else None
        self.gate_up = Linear(2 * spec.ffn_size, spec.hidden_size, bias=spec.mlp_bias)
        self.down = Linear(spec.hidden_size, spec.ffn_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up(x)  # [S, 2 * ffn]
        if self._gate is not None:
            inner = pointwise.gated(both, self._gate)
        else:
            gate, up = both.chunk(2, dim=-1)
            inner = self.activate(gate).mul_(up)
        down: Tensor = self.down(inner)  # [S, ffn] -> [S, hidden]
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
        hidden, normed = _residual(hidden, added, self.attention_post_norm, self.mlp_norm)
        return _residual(hidden, self.mlp(normed), self.mlp_post_norm, None)[0]


def _residual(
    hidden: Tensor, added: Tensor, post: Norm | None, then: Norm | None
) -> tuple[Tensor, Tensor]:
    """(hidden + post(added), then(that)); without `then` the sum comes twice. All [S, hidden]."""
    norms = [norm for norm in (post, then) if norm is not None]
    if norms and all(isinstance(norm, RMSNorm) and norm.is_compiled for norm in norms):
        first, second = (None if norm is None else norm.weight for norm in (post, then))
        return pointwise.residual(hidden, added, first, second, norms[0].eps)
    total = hidden + (added if post is None else post(added))
    return total, total if then is None else then(total)


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=False)
