"""A decoder layer that also looks at what an encoder said, and what it remembers of a session."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mesh.errors import GenerationFailed
from runtime.compute.linear import Linear
from runtime.compute.torch_device import CPU
from runtime.kv_cache import LayerCache
from runtime.models.encoder_block import (
    MLP,
    Norm,
    SelfAttention,
    Stream,
    attention,
    closing,
    query_scale,
)
from runtime.models.parts import Part, check_share, through
from runtime.models.seq2seq_spec import Seq2SeqSpec, StackSpec


class DecoderCache:
    """One layer's memory of one session: its own keys and values, and those of the source."""

    def __init__(self, stack: StackSpec, context: int, device: torch.device = CPU) -> None:
        """`context` bounds the target, in tokens."""
        self.target = LayerCache(stack.heads, stack.head_dim, None, context, device)
        self._source: tuple[Tensor, Tensor] | None = None  # keys, values [H, T, D]

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        """Keys and values [H, T, D]. Raises GenerationFailed before anything was encoded."""
        if self._source is None:
            raise GenerationFailed(
                "a decoder's step came before the source was encoded; replay the session"
            )
        return self._source

    @source.setter
    def source(self, keys_values: tuple[Tensor, Tensor]) -> None:
        """A new source: what was said about another one is forgotten."""
        self._source = keys_values
        self.target.truncate(0)

    def append(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the target's keys and values [H, S, D] at `position`, and returns all, [H, T, D].

        Raises GenerationFailed for a gap, a full context, or before anything was encoded.
        """
        self.source  # noqa: B018 - raises, before anything is remembered
        keys, values, _ = self.target.append(position, keys, values)
        return keys, values

    @property
    def size_bytes(self) -> int:
        """What is allocated, used or not."""
        source = 0 if self._source is None else sum(tensor.nbytes for tensor in self._source)
        return self.target.size_bytes + source


@dataclass(frozen=True, slots=True)
class Target:
    """Where a pass's rows stand in the target, and what this layer remembers of its session."""

    position: int  # of the first row's token
    cache: DecoderCache  # holds the tokens before `position`, afterwards these as well


class TargetAttention(SelfAttention):
    """Each row of the target looks at itself and those before it."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec) -> None:
        super().__init__(spec, stack, causal=True)

    def inside(self, opened: Tensor, at: Target) -> Tensor:
        """[S, 3 * H * D] -> [S, H * D]"""
        return self.attend(*self.project(opened, at), at)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, at: Target) -> Tensor:
        """The rows' keys and values [H, S, D] go into the cache, which the queries then look
        through: [S, H * D]
        """
        return self.look(q, *at.cache.append(at.position, keys, values), at.position)


class CrossAttention(nn.Module):
    """The target's rows look at what the encoder said, whose keys and values are made once."""

    def __init__(self, spec: Seq2SeqSpec, stack: StackSpec) -> None:
        super().__init__()
        self.heads = stack.heads
        self.scale = query_scale(spec, stack)
        self.query = Linear(stack.inner_size, spec.hidden_size, bias=spec.biased)
        self.key_value = Linear(2 * stack.inner_size, spec.hidden_size, bias=spec.biased)
        self.output = closing(spec, stack.inner_size)

    @property
    def opening(self) -> Linear:
        return self.query

    @property
    def closing(self) -> Linear:
        return self.output

    def remember(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [H, T, D] of the encoder's output [T, hidden]."""
        key_value = self.key_value(encoded).view(encoded.shape[0], 2, self.heads, -1)
        keys, values = key_value.permute(1, 2, 0, 3)
        return keys.contiguous(), values.contiguous()

    def inside(self, opened: Tensor, at: Target) -> Tensor:
        """[S, H * D] -> [S, H * D]. Raises GenerationFailed before anything was encoded."""
        q = opened.view(opened.shape[0], self.heads, -1).transpose(0, 1)  # [H, S, D]
        return attention(q, *at.cache.source, None, self.scale)


class DecoderLayer(Stream):
    """One layer of the decoder, or a share of one: attention to itself, to the source, and MLP."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        """Raises PlanError for a share without heads or columns."""
        super().__init__(spec)
        assert spec.decoder is not None, "only a model with a decoder has decoder layers"
        check_share(spec.decoder.heads, spec.decoder.ffn_size)
        self.attention = TargetAttention(spec, spec.decoder)
        self.attention_norm = Norm.of(spec)
        self.cross = CrossAttention(spec, spec.decoder)
        self.cross_norm = Norm.of(spec)
        self.mlp = MLP(spec, spec.decoder)
        self.mlp_norm = Norm.of(spec)
        self.parts: tuple[Part[Target], ...] = (self.attention, self.cross, self.mlp)
        self.norms = (self.attention_norm, self.cross_norm, self.mlp_norm)

    def remember(self, encoded: Tensor, cache: DecoderCache) -> None:
        """Takes the encoder's output [T, hidden] as the source from now on."""
        cache.source = self.cross.remember(encoded)

    def forward(self, hidden: Tensor, at: Target) -> Tensor:
        """[S, hidden] -> [S, hidden] for the S target tokens at `at.position`.."""
        return through(self, hidden, at)
