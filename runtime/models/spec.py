"""What a decoder looks like, and where its weights stand in the file: a family fills these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FP32_BYTES = 4


class Activation(StrEnum):
    """A nonlinearity: in the MLP, that of its gate where it has one."""

    GELU_TANH = "gelu_tanh"
    GELU = "gelu"  # by the error function
    SILU = "silu"
    RELU = "relu"
    TANH = "tanh"


class NormKind(StrEnum):
    """What keeps the rows of hidden states at one scale."""

    RMS = "rms"
    LAYER = "layer"  # takes the mean off, and adds a bias


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3's longer context: slow turns are slowed by `factor`, quick ones are left alone.

    A pair is slow when it turns less than `low` times in `context` tokens, quick when it turns
    more than `high` times; between the two the change is gradual.
    """

    factor: float
    low: float
    high: float
    context: int  # tokens the model was first trained with


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions. Linear scaling divides positions by `factor`."""

    base: float
    factor: float = 1.0
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What differs between layers. `window` counts the tokens seen, oneself included."""

    window: int | None  # None: all tokens before
    rope: RopeSpec | None  # None: positions are in the hidden states already


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer: grouped queries, a norm before attention and before the MLP."""

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
    layers: tuple[LayerSpec, ...]
    tied_head: bool  # the vocabulary head is the embedding
    embedding_scale: float = 1.0
    norm: NormKind = NormKind.RMS
    qk_norm: bool = False  # RMS norm on each head's query and key, before rope
    post_norm: bool = False  # a norm also on what attention and MLP add to the residual stream
    gated: bool = True  # the MLP is down(activation(gate) * up), else down(activation(up))
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output
    mlp_bias: bool = False
    closing_bias: bool = True  # of several shares, only one adds the biases behind the sums
    # Which KV head each query head reads, in a share that cuts through a group. None: even groups.
    kv_of_heads: tuple[int, ...] | None = None
    # Learned positions: the row of their table that belongs to the first token. None: no table.
    first_position: int | None = None
    logit_softcap: float | None = None

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


class Storage(StrEnum):
    """How the file's numbers differ from the parameter they fill."""

    PLAIN = "plain"
    TRANSPOSED = "transposed"  # [columns, rows], as GPT-2 keeps its matrices
    PAIRED = "paired"  # llama.cpp's order of a head's rows: 0, D/2, 1, D/2 + 1 ..
    LESS_ONE = "less_one"  # a norm's factors, from which 1 was taken


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor of the file goes: rows of one parameter of a Block."""

    tensor: str  # its name in the file
    shape: tuple[int, ...]  # in the file
    parameter: str  # a Linear of the Block, or as in Block.named_parameters()
    first_row: int = 0
    storage: Storage = Storage.PLAIN
    head_dim: int = 0  # with PAIRED

    @property
    def rows(self) -> int:
        """How many rows of the parameter it fills."""
        return self.shape[1] if self.storage is Storage.TRANSPOSED else self.shape[0]

    @property
    def is_map(self) -> bool:
        """Whether it fills rows of a Linear, and not a vector or a table as it is."""
        return not self.parameter.endswith((".weight", ".bias"))
