"""Sections: a layer with whatever stands around it, and what stands behind the last one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from runtime.models.decoder_block import DecoderLayer
from runtime.models.encoder_block import EncoderLayer, Norm
from runtime.models.encoder_ends import Exit, MelEntry, TokenEntry
from runtime.models.seq2seq_spec import Output
from runtime.seq2seq.pooling import Pooling

Layer = EncoderLayer | DecoderLayer


@dataclass(frozen=True, slots=True)
class Section:
    """One layer, and the end of a stack that goes wherever that layer goes."""

    layer: Layer
    source: TokenEntry | MelEntry | None = None  # in front of the encoder's first layer
    middle: Norm | None = None  # behind its last one
    target: TokenEntry | None = None  # in front of the decoder's first layer


@dataclass(frozen=True, slots=True)
class Ending:
    """What turns the last layer's hidden states into an answer."""

    exit: Exit | None  # None: pooled hidden states are the answer
    pooling: Pooling

    def vector(self, pooled: Tensor) -> Tensor:
        """What an encoder says of a source whose hidden states are pooled, [1, hidden]: an
        embedding, or logits over its labels; [1, width].
        """
        if self.exit is None:
            return self.pooling.embedding(pooled)
        assert self.exit.exit.output is Output.CLASSES, "other heads say something of each row"
        return self.exit.forward(pooled)

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, V], of a decoder."""
        assert self.exit is not None, "a decoder has a vocabulary"
        return self.exit.forward(hidden)
