"""A decoder layer that also looks at what an encoder said, and what it remembers of a session."""

from __future__ import annotations

from torch import Tensor, nn

from mesh.errors import GenerationFailed
from runtime.kv_cache import LayerCache
from runtime.models.encoder_block import MLP, CrossAttention, Norm, SelfAttention
from runtime.models.seq2seq_spec import Seq2SeqSpec, StackSpec


class DecoderCache:
    """One layer's memory of one session: its own keys and values, and those of the source."""

    def __init__(self, stack: StackSpec, context: int) -> None:
        """`context` bounds the target, in tokens."""
        self.target = LayerCache(stack.heads, stack.head_dim, None, context)
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

    @property
    def size_bytes(self) -> int:
        """What is allocated, used or not."""
        source = 0 if self._source is None else sum(tensor.nbytes for tensor in self._source)
        return self.target.size_bytes + source


class DecoderLayer(nn.Module):
    """One layer of the decoder: self-attention, attention to the source, MLP."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        super().__init__()
        assert spec.decoder is not None, "only a model with a decoder has decoder layers"
        self.pre_norm = spec.pre_norm
        self.attention = SelfAttention(spec, spec.decoder, causal=True)
        self.attention_norm = Norm.of(spec)
        self.cross = CrossAttention(spec, spec.decoder)
        self.cross_norm = Norm.of(spec)
        self.mlp = MLP(spec, spec.decoder)
        self.mlp_norm = Norm.of(spec)

    def remember(self, encoded: Tensor, cache: DecoderCache) -> None:
        """Takes the encoder's output [T, hidden] as the source from now on."""
        cache.source = self.cross.remember(encoded)

    def forward(self, hidden: Tensor, position: int, cache: DecoderCache) -> Tensor:
        """[S, hidden] -> [S, hidden] for the S target tokens at `position`..

        `cache` holds this layer's tokens before `position`, and afterwards these as well.
        """
        keys, values = cache.source
        if self.pre_norm:
            hidden = hidden + self._look_back(self.attention_norm(hidden), position, cache)
            hidden = hidden + self.cross(self.cross_norm(hidden), keys, values)
            return hidden.add(self.mlp(self.mlp_norm(hidden)))
        hidden = self.attention_norm(hidden + self._look_back(hidden, position, cache))
        hidden = self.cross_norm(hidden + self.cross(hidden, keys, values))
        return self.mlp_norm.forward(hidden + self.mlp(hidden))

    def _look_back(self, x: Tensor, position: int, cache: DecoderCache) -> Tensor:
        q, k, v = self.attention.project(x)
        keys, values, _ = cache.target.append(position, k, v)  # [H, T, D]
        return self.attention.attend(q, keys, values, position)
