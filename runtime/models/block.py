"""The decoder block that all families share: smallest part first.

A step may hold the tokens of several sessions, a run of rows each: all rows share the linear maps,
and each run attends to its own cache.

Shapes: S tokens of this step, all runs together; N tokens of one run; T tokens in its cache;
H query heads, K key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.compute import pointwise
from runtime.compute.kinds import Heads
from runtime.compute.linear import Linear
from runtime.kv_cache import LayerCache
from runtime.models.mlp import MLP, GatedMLP
from runtime.models.norms import RMSNorm, hidden_norm, residual
from runtime.models.parts import Part, check_share, through
from runtime.models.rope import Rope, rotate
from runtime.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Run:
    """One session's rows [first, first + count) of a step, and where they stand in its text."""

    first: int
    count: int
    position: int  # of the first row's token
    cache: LayerCache  # of this layer: holds the tokens before `position`, afterwards these too


class Attention(nn.Module):
    """Grouped-query attention over the caches; `window` bounds how far back a token sees."""

    def __init__(self, spec: DecoderSpec, window: int | None, rope: Rope | None) -> None:
        super().__init__()
        self.spec = spec
        self.window = window
        self.rope = rope
        self.qkv = Linear(spec.query_size + 2 * spec.kv_size, spec.hidden_size, bias=spec.qkv_bias)
        closing_bias = spec.output_bias and spec.closing_bias
        self.output = Linear(spec.hidden_size, spec.query_size, bias=closing_bias)
        self.query_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self.key_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else None
        self._heads = Heads(
            spec.heads, spec.kv_heads, spec.head_dim, spec.qk_norm, rope is not None
        )
        self._groups = _even_groups(spec)
        self._is_compiled = pointwise.fits(spec.head_dim // 2) and spec.head_dim % 2 == 0

    @property
    def opening(self) -> Linear:
        return self.qkv

    @property
    def closing(self) -> Linear:
        return self.output

    def inside(self, opened: Tensor, at: Sequence[Run]) -> Tensor:
        """[S, (H + 2 K) D] -> [S, H * D]"""
        return self.attend(*self.project(opened, at), at)

    def project(self, opened: Tensor, at: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor]:
        """[S, (H + 2 K) D] to queries [H, S, D], keys and values [K, S, D], normed and turned."""
        by_head = self._by_head(opened, at)  # [H + 2 K, S, D]
        keys, values = self.spec.heads, self.spec.heads + self.spec.kv_heads
        return by_head[:keys], by_head[keys:values], by_head[values:]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, at: Sequence[Run]) -> Tensor:
        """The rows' keys and values go into each run's cache, which its queries then look
        through: [S, H * D]
        """
        outs = [self._run(q, keys, values, run) for run in at]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)  # [H, S, D]
        return out.transpose(0, 1).reshape(q.shape[1], -1)

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
        q, where = q[:, rows], (run.position, first)
        if len(self._groups) == 1:
            return self._attend(q, keys, values, *where)
        return torch.cat(
            [self._attend(q[ours], keys[kv], values[kv], *where) for ours, kv in self._groups]
        )

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, position: int, first: int) -> Tensor:
        """q [H, S, D] at `position`.. over keys and values [K, T, D] at `first`.., in even groups:
        [H, S, D]
        """
        heads, count, dim = q.shape
        tokens, mask = keys.shape[1], None
        # From the beginning on, each token sees all before it: torch knows that without a mask.
        is_causal = count > 1 and count == tokens and (self.window is None or tokens <= self.window)
        if count == 1:  # the cache returns just what one token sees: no mask, one pass a KV head
            q = q.reshape(keys.shape[0], -1, dim)  # [K, H/K, D]
        elif not is_causal:
            mask = visible(position, count, first, tokens, self.window, q.device)  # [S, T]
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


def visible(
    position: int,
    count: int,
    first: int,
    tokens: int,
    window: int | None,
    device: torch.device | None = None,
) -> Tensor:
    """[S, T] bool: may the token at position + s see the one at first + t?"""
    queries = torch.arange(position, position + count, device=device)[:, None]
    keys = torch.arange(first, first + tokens, device=device)[None, :]
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


class Block(nn.Module):
    """One layer, or a share of one. Its parameters are made empty; `runtime.weights` fills them."""

    def __init__(self, spec: DecoderSpec, index: int, rope: Rope | None) -> None:
        """`rope` is that of the layer's spec: None where positions are learned.

        A share's spec says how many heads and columns it has; raises PlanError for none.
        """
        super().__init__()
        check_share(spec.heads, spec.ffn_size)
        self.index = index
        self.attention_norm = hidden_norm(spec)
        self.attention = Attention(spec, spec.layers[index].window, rope)
        self.attention_post_norm = hidden_norm(spec) if spec.post_norm else None
        self.mlp_norm = hidden_norm(spec)
        self.mlp = GatedMLP(spec) if spec.gated else MLP(spec)
        self.mlp_post_norm = hidden_norm(spec) if spec.post_norm else None
        self.parts: tuple[Part[Sequence[Run]], ...] = (self.attention, self.mlp)

    def enter(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.attention_norm(hidden)
        return normed

    def connect(self, index: int, hidden: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        if index == 0:
            return residual(hidden, added, self.attention_post_norm, self.mlp_norm)
        return residual(hidden, added, self.mlp_post_norm, None)

    def forward(self, hidden: Tensor, runs: Sequence[Run]) -> Tensor:
        """[S, hidden] -> [S, hidden]; the runs are disjoint, in order, and make up all S rows."""
        return through(self, hidden, runs)


def _even_groups(spec: DecoderSpec) -> tuple[tuple[slice, slice], ...]:
    """Query heads, and the KV heads that equally many of them read each: all, in a whole layer."""
    if spec.kv_of_heads is None:
        assert spec.heads % spec.kv_heads == 0, "a spec without groups of its own has even ones"
        return ((slice(0, spec.heads), slice(0, spec.kv_heads)),)
    readers = [spec.kv_of_heads.count(head) for head in range(spec.kv_heads)]
    in_order = [head for head, count in enumerate(readers) for _ in range(count)]
    assert all(readers), "a share has no KV head that nobody reads"
    assert tuple(in_order) == spec.kv_of_heads, "groups stand side by side, in order"
    assert len(in_order) == spec.heads, "each query head reads one KV head"
    groups, first = [], 0
    for count, same in groupby(range(spec.kv_heads), key=readers.__getitem__):
        heads = list(same)
        last = first + count * len(heads)
        groups.append((slice(first, last), slice(heads[0], heads[-1] + 1)))
        first = last
    return tuple(groups)
