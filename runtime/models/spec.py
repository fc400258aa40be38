"""What a decoder looks like, and where its weights stand in the file: a family fills these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FP32_BYTES = 4


class Activation(StrEnum):
    """The gate's nonlinearity in the MLP."""

    GELU_TANH = "gelu_tanh"
    SILU = "silu"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions. Linear scaling divides positions by `factor`."""

    base: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What differs between layers. `window` counts the tokens seen, oneself included."""

    window: int | None  # None: all tokens before
    rope: RopeSpec


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer with grouped queries, rotary positions and a gated MLP."""

    architecture: str
    hidden_size: int
    ffn_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens
    norm_eps: float
    query_scale: float  # what the dot products of queries and keys are multiplied by
    activation: Activation
    embedding_scale: float
    qk_norm: bool  # RMS norm on each head's query and key, before rope
    post_norm: bool  # RMS norm also on what attention and MLP add to the residual stream
    tied_head: bool  # the vocabulary head is the embedding
    logit_softcap: float | None
    layers: tuple[LayerSpec, ...]

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys of a token; the values' is the same."""
        return self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in one layer's cache."""
        return 2 * self.kv_size * FP32_BYTES


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor of the file goes: rows of one parameter of a Block."""

    tensor: str  # its name in the file
    shape: tuple[int, ...]
    parameter: str  # as in Block.named_parameters()
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: how its metadata are read, and the names of its tensors."""

    architecture: str
    read_spec: Callable[[Mapping[str, Any], frozenset[str]], DecoderSpec]  # metadata, tensor names
    layer_tensors: Callable[[DecoderSpec, int], tuple[TensorPlace, ...]]
