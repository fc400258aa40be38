"""What an encoder, or an encoder with a decoder, looks like: a family fills these from config.json.

Layers are counted through: the encoder's first, then the decoder's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from runtime.models.spec import FP32_BYTES, Activation, NormKind


class Output(StrEnum):
    """What comes out behind the last layer."""

    HIDDEN = "hidden"  # nothing is added: hidden states, or one embedding where they are pooled
    MASKED = "masked"  # for each row of the source, logits over the vocabulary
    CLASSES = "classes"  # from the first row, logits over labels
    LANGUAGE = "language"  # for the target's tokens, logits over the vocabulary


@dataclass(frozen=True, slots=True)
class RelativePositions:
    """T5's learned bias by distance: half the buckets exact, half growing up to `max_distance`."""

    buckets: int
    max_distance: int


@dataclass(frozen=True, slots=True)
class StackSpec:
    """One stack: the encoder's layers, or the decoder's."""

    layers: int
    heads: int
    head_dim: int
    ffn_size: int

    @property
    def inner_size(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class TokenEntrySpec:
    """Tokens to hidden states: word + position + kind, and a norm."""

    context: int  # tokens
    scale: float = 1.0
    position_rows: int = 0  # of the learned table; 0: none
    position_offset: int = 0  # the row of position 0
    kinds: int = 0  # segments that are told apart; ours is always the first
    normed: bool = False


@dataclass(frozen=True, slots=True)
class MelEntrySpec:
    """A log-mel spectrogram to hidden states, one for each two frames."""

    mels: int
    context: int  # hidden states; so many frames twice


@dataclass(frozen=True, slots=True)
class ExitSpec:
    """[transform, nonlinearity,] [norm,] scale, then a matrix to `outputs`."""

    output: Output
    outputs: int = 0
    transform: Activation | None = None
    normed: bool = False
    biased: bool = False
    logits_bias: bool = False  # a row that is added to the logits, beside the matrix
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Seq2SeqSpec:
    """An encoder, and a decoder that attends to what it said, unless `decoder` is None."""

    architecture: str
    hidden_size: int
    vocabulary: int
    encoder: StackSpec
    decoder: StackSpec | None
    norm: NormKind
    norm_eps: float
    pre_norm: bool  # norms in front of attention and MLP, and one behind each stack; else after
    biased: bool
    key_biased: bool
    activation: Activation
    gated: bool
    scaled: bool  # queries times head_dim ** -0.5
    relative: RelativePositions | None
    source: TokenEntrySpec | MelEntrySpec
    target: TokenEntrySpec | None  # None without a decoder
    exit: ExitSpec
    closing_bias: bool = True  # of several shares, only one adds the biases behind the sums

    @property
    def layers(self) -> int:
        return self.encoder.layers + (self.decoder.layers if self.decoder is not None else 0)

    def stack(self, index: int) -> StackSpec:
        """The stack that layer `index` belongs to."""
        if index < self.encoder.layers or self.decoder is None:
            return self.encoder
        return self.decoder

    def is_decoder(self, index: int) -> bool:
        return index >= self.encoder.layers

    @property
    def context(self) -> int:
        """Tokens: the target's where there is one, else the source's."""
        return self.target.context if self.target is not None else self.source.context

    def kv_bytes_per_token(self, index: int) -> int:
        """What a target token takes in the cache of layer `index`; an encoder layer has none."""
        return 2 * self.stack(index).inner_size * FP32_BYTES if self.is_decoder(index) else 0
