"""A stage of an encoder or encoder-decoder: a run of its layers. Pure compute, for the worker.

Two passes go through the stages. `encode` sends the source through the encoder's layers, and on to
every stage that has layers of the decoder, which keep its keys and values. `step` sends the
target's tokens through the decoder's layers; stages before those hand them on as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.models.decoder_block import DecoderCache, DecoderLayer
from runtime.models.encoder_block import EncoderLayer
from runtime.models.encoder_ends import TokenEntry
from runtime.models.seq2seq_spec import Output
from runtime.sampling import Sampling, sample
from runtime.seq2seq.weights import Layer, Seq2SeqCheckpoint


@dataclass(frozen=True, slots=True)
class _Opened:
    """One session here."""

    caches: list[DecoderCache]  # of this stage's decoder layers
    sampling: Sampling
    first: int  # the position of the first token that is chosen


class Seq2SeqStage:
    """Layers [first, last), the encoder's first; each end of a stack has its embedding or head."""

    def __init__(
        self, checkpoint: Seq2SeqCheckpoint, span: Span, layers: Mapping[int, Layer]
    ) -> None:
        """Loads what stands before, between and behind the layers, as far as it belongs here."""
        spec = checkpoint.spec
        depth = spec.encoder.layers
        self.span = span
        self.is_first, self.is_last = span.first == 0, span.last == spec.layers
        self._checkpoint = checkpoint
        here = [layers[index] for index in range(span.first, span.last)]
        self._encoders = [layer for layer in here if isinstance(layer, EncoderLayer)]
        self._decoders = [layer for layer in here if isinstance(layer, DecoderLayer)]
        self._source = checkpoint.load_source() if self.is_first else None
        self._middle = checkpoint.load_middle() if depth - 1 in span else None
        self._target = checkpoint.load_target() if self._decoders and depth in span else None
        self._exit = checkpoint.load_exit() if self.is_last else None
        self._open: dict[SessionId, _Opened] = {}

    @classmethod
    def load(cls, checkpoint: Seq2SeqCheckpoint, span: Span) -> Seq2SeqStage:
        """Loads the layers too."""
        layers = {index: checkpoint.load_layer(index) for index in range(span.first, span.last)}
        return cls(checkpoint, span, layers)

    @property
    def decodes(self) -> bool:
        """Whether a step does anything here."""
        return bool(self._decoders)

    def open(
        self, session: SessionId, sampling: Sampling, context: int, prompt_tokens: int = 1
    ) -> None:
        """Makes empty caches; what the session held before is forgotten.

        The target begins with `prompt_tokens` that are given; the first one after them is chosen.
        """
        spec = self._checkpoint.spec
        caches = []
        if spec.decoder is not None:
            bound = min(context, spec.context)
            caches = [DecoderCache(spec.decoder, bound) for _ in self._decoders]
        self._open[session] = _Opened(caches, sampling, prompt_tokens)

    def close(self, session: SessionId) -> None:
        self._open.pop(session, None)

    @torch.inference_mode()
    def encode(self, session: SessionId, rows: Tensor) -> Tensor | None:
        """Runs the whole source through this stage's encoder layers.

        `rows` is, on the first stage, [S, 1] int32 token ids or [S, mels] frames; elsewhere the
        hidden states or, behind the encoder, its output, [T, hidden]. Returns the same for the
        next stage. The last stage returns an encoder's answer (see `_answer`); of a model with a
        decoder, and when the session is closed, None. A source that comes again, or another one,
        takes the place of the one before.
        """
        opened = self._open.get(session)
        if opened is None:  # closed while the source waited for the worker
            return None
        hidden = self._embed(rows)
        for encoder in self._encoders:
            hidden = encoder.forward(hidden)
        if self._middle is not None:
            hidden = self._middle.forward(hidden)
        for decoder, cache in zip(self._decoders, opened.caches, strict=True):
            decoder.remember(hidden, cache)
        if not self.is_last:
            return hidden
        return None if self._decoders else self._answer(hidden)

    @torch.inference_mode()
    def step(self, session: SessionId, position: int, rows: Tensor, choose: bool) -> Tensor | None:
        """Runs target tokens at `position`.. through this stage's decoder layers.

        `rows` is [S, 1] int32 token ids up to the stage with the decoder's first layer, [S, hidden]
        behind it. Returns the same for the next stage; on the last stage [1, 1] int32 with the next
        token, or None when nothing is to be chosen or the session is closed. The same step may come
        twice: whatever the caches hold from `position` on is forgotten first. Raises
        GenerationFailed when nothing was encoded.
        """
        opened = self._open.get(session)
        if opened is None:
            return None
        if not self._decoders:
            return rows
        hidden = self._hidden(opened, position, rows)
        if not self.is_last:
            return hidden
        return self._choose(opened, position + rows.shape[0], hidden) if choose else None

    @torch.inference_mode()
    def logits(self, session: SessionId, position: int, rows: Tensor) -> Tensor:
        """[S, V] after each of the tokens, on the last stage; `rows` as in `step`."""
        opened = self._open.get(session)
        if opened is None or self._exit is None or not self._decoders:
            raise GenerationFailed("only the last stage of an open session has logits")
        return self._exit.forward(self._hidden(opened, position, rows))

    def _embed(self, rows: Tensor) -> Tensor:
        if self._source is None:
            return rows
        if isinstance(self._source, TokenEntry):
            return self._source.forward(self._checkpoint.words(rows[:, 0]))
        return self._source.forward(rows)

    def _answer(self, hidden: Tensor) -> Tensor:
        """Of the last hidden states [S, hidden]: one embedding [1, hidden], or all of them;
        logits [S, V] of a masked language model; logits [1, labels] of a classifier."""
        if self._exit is not None:
            by_first = self._checkpoint.spec.exit.output is Output.CLASSES
            return self._exit.forward(hidden[:1] if by_first else hidden)
        pooling = self._checkpoint.pooling
        return hidden if pooling is None else pooling.pool(hidden)

    def _hidden(self, opened: _Opened, position: int, rows: Tensor) -> Tensor:
        """[S, hidden] after this stage's decoder layers."""
        for cache in opened.caches:
            cache.target.truncate(position)
        hidden = rows
        if self._target is not None:
            hidden = self._target.forward(self._checkpoint.words(rows[:, 0]), position)
        for layer, cache in zip(self._decoders, opened.caches, strict=True):
            hidden = layer.forward(hidden, position, cache)
        return hidden

    def _choose(self, opened: _Opened, position: int, hidden: Tensor) -> Tensor:
        """[1, 1] int32: the token for `position`, from the hidden states before it."""
        decoding = self._checkpoint.decoding
        assert self._exit is not None, "the last stage has the exit"
        assert decoding is not None, "a model with a decoder has rules"
        logits = self._exit.forward(hidden[-1:])[0]  # [V]
        ruled = decoding.ruled(logits, first=position == opened.first)
        return torch.tensor([[sample(ruled, opened.sampling, position)]], dtype=torch.int32)
