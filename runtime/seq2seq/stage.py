"""A stage of an encoder or encoder-decoder: a run of its layers. Pure compute, for the worker.

Two passes go through the stages. A source goes through the encoder's layers, and on to every stage
that has layers of the decoder, which keep its keys and values. The target's tokens go through the
decoder's layers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.arrival import Tile
from runtime.chosen import to_row
from runtime.compute.torch_device import CPU
from runtime.former import Former, Parted
from runtime.heads.question import Choice, draw
from runtime.history import History
from runtime.kv_cache import LayerCache
from runtime.logs import Logs
from runtime.models.decoder_block import DecoderCache, DecoderLayer, Target
from runtime.models.encoder_block import EncoderLayer
from runtime.models.encoder_ends import TokenEntry
from runtime.refill import Held
from runtime.sampling import Sampling
from runtime.seq2seq.section import Ending, Section
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stage import Slice
from runtime.walks.walk import WHOLE, Walk
from runtime.walks.wanted import Wanted


@dataclass(slots=True)
class _Open:
    """One session here."""

    caches: list[DecoderCache]  # of this stage's decoder layers
    sampling: Sampling
    history: History | None
    first: int = 0  # the position of the first token that is chosen


class Seq2SeqStage:
    """Layers [first, last), the encoder's first; each end of a stack has its embedding or head."""

    def __init__(
        self,
        checkpoint: Seq2SeqCheckpoint,
        span: Span,
        sections: Mapping[int, Section],
        ending: Ending | None,
        device: torch.device = CPU,
    ) -> None:
        """`ending` is None but where the span ends the model. Both it and the sections are on
        `device`; what comes in and goes out is the processor's.
        """
        self.span = span
        self._checkpoint = checkpoint
        here = [sections[index] for index in range(span.first, span.last)]
        self._encoders = [one.layer for one in here if isinstance(one.layer, EncoderLayer)]
        self._decoders = [one.layer for one in here if isinstance(one.layer, DecoderLayer)]
        self._source = here[0].source
        self._middle = next((one.middle for one in here if one.middle is not None), None)
        self._target = next((one.target for one in here if one.target is not None), None)
        self._ending = ending
        spec = checkpoint.spec
        answers = spec.decoder is None and span.last == spec.layers
        assert not answers or self._middle is None, "what is pooled has no norm in front of it"
        # Of a source's rows; known on every device, for each sums up its own.
        self._wanted: Wanted = checkpoint.pooling.wanted if answers else None
        self._device = device
        self._open: dict[SessionId, _Open] = {}

    @property
    def widest(self) -> int:
        """How many numbers a row has at most that devices of this stage send each other."""
        spec = self._checkpoint.spec
        return max(spec.hidden_size, 2 * spec.encoder.inner_size)

    def open(
        self,
        session: SessionId,
        sampling: Sampling,
        context: int,
        *,
        name: SessionId | None = None,
        afresh: bool = False,
        prefix: bytes = b"",
        history: History | None = None,
        places: int = 1,
    ) -> Held:
        """Makes empty caches; what the session held before is forgotten. Nothing is known of what
        will come, for the same tokens about another source are not the same.
        """
        spec = self._checkpoint.spec
        caches = []
        if spec.decoder is not None:
            bound = min(context, spec.context)
            caches = [
                DecoderCache(layer.attention.stack, bound, self._device) for layer in self._decoders
            ]
        self._open[session] = _Open(caches, sampling, history)
        return Held()

    def close(self, session: SessionId, prefix: bytes = b"", *, paused: bool = False) -> None:
        self._open.pop(session, None)

    def follow(self, before: object, logs: Logs) -> None:
        """Every plan begins with the source again."""

    def given(self, session: SessionId, layer: int, first: int, count: int) -> Tensor:
        """Nothing is kept of what went into a layer."""
        raise GenerationFailed("a model with an encoder keeps no log; replay the session")

    def parting(self, kept: Span | None) -> list[Parted]:
        """Every plan begins with the source again, so nobody asks for its caches."""
        return []

    def adopt(self, former: Former) -> None:
        """There is never anything."""

    def cache_of(self, name: SessionId, layer: int) -> LayerCache | None:
        return None

    @property
    def cache_bytes(self) -> int:
        """Not asked for, since none of them is ever kept for others."""
        return 0

    @property
    def cache_width(self) -> int:
        return 0

    def fill(self, session: SessionId, layer: int, tile: Tile) -> None:
        raise GenerationFailed("a model with an encoder takes no caches; replay the session")

    def held(self, session: SessionId) -> Held:
        return Held()

    def limit(self, places: int) -> None:
        """Nothing is kept of sessions that ended, so there is nothing to let go of."""

    @torch.inference_mode()
    def turn(self, slices: Sequence[Slice], walk: Walk = WHOLE) -> list[Tensor | None]:
        """Runs the slices of different sessions through this stage's layers, one after the other.

        A source returns [T, hidden] for the next stage; on the last stage what an encoder says of
        it, [1, width], or None where a decoder is to speak. Tokens return [S, hidden] for the next
        stage; on the last one the row of `to_row`, or None when nothing is to be chosen. So does a
        session that is closed. The same slice may come twice: whatever the caches hold from its
        position on is forgotten first, and a source takes the place of the one before.

        Raises GenerationFailed for a slice that cannot be computed, PromptTooLong for a source
        that the model cannot read at once. With a `walk` of several devices each of them runs the
        same slices; the lead's answers count. It fails where a session is closed on one of them.
        """
        # Taken at once: the loop may close a session while this thread computes.
        opened = [self._open.get(each.session) for each in slices]
        if walk.is_shared and None in opened:
            raise GenerationFailed("a conversation is closed already on a device of the stage")
        return [
            None if one is None else self._run(each, one, walk)
            for each, one in zip(slices, opened, strict=True)
        ]

    def _run(self, each: Slice, one: _Open, walk: Walk) -> Tensor | None:
        if not each.is_source:
            hidden = self.decode(each.rows, each.position, one.caches, walk)
            if hidden is None or self._ending is None:
                return None if hidden is None else hidden.cpu()
            return self._choose(hidden, each, one) if each.choose else None
        one.first = each.position
        hidden = self.encode(each.rows, walk, self._wanted)
        if hidden is None:
            return None
        for decoder, cache in zip(self._decoders, one.caches, strict=True):
            decoder.remember(hidden, cache)
        if self._ending is None:
            return hidden.cpu()
        return self._ending.vector(hidden).cpu() if each.choose else None

    def encode(self, rows: Tensor, walk: Walk = WHOLE, wanted: Wanted = None) -> Tensor | None:
        """A source through this stage's encoder layers, and what is wanted of its rows then,
        [W, hidden]; None where another device has it.

        `rows` is, on the first stage, [S, 1] int32 token ids or [S, mels] frames; elsewhere what
        the stage before returned, [T, hidden].
        """
        entered = self._enter(rows)
        places = [None] * len(self._encoders)
        everywhere = bool(self._decoders)
        hidden = walk.run(self._encoders, entered, places, wanted, everywhere=everywhere)
        if hidden is None or self._middle is None:
            return hidden
        return self._middle.forward(hidden)

    def decode(
        self,
        rows: Tensor,
        position: int,
        caches: Sequence[DecoderCache],
        walk: Walk = WHOLE,
    ) -> Tensor | None:
        """Target tokens at `position`.. through this stage's decoder layers: [S, hidden], or None
        where another device has it then.

        `rows` is [S, 1] int32 token ids where the decoder's first layer is, else [S, hidden].
        """
        for cache in caches:
            cache.target.truncate(position)
        if self._target is None:
            hidden = rows.to(self._device)
        else:
            hidden = self._target.forward(self._words(rows), position)
        places = [Target(position, cache) for cache in caches]
        return walk.run(self._decoders, hidden, places) if places else hidden

    def _enter(self, rows: Tensor) -> Tensor:
        if self._source is None:
            return rows.to(self._device)
        if isinstance(self._source, TokenEntry):
            return self._source.forward(self._words(rows))
        if not torch.isfinite(rows).all():
            raise GenerationFailed("a frame of the sound holds what is no finite number")
        return self._source.forward(rows.to(self._device))

    def _words(self, rows: Tensor) -> Tensor:
        """Token ids [S, 1] -> [S, hidden]"""
        return self._checkpoint.words(rows[:, 0]).to(self._device)

    def _choose(self, hidden: Tensor, each: Slice, one: _Open) -> Tensor:
        """The row of `to_row`: the token that follows, from the hidden states before it."""
        decoding = self._checkpoint.decoding
        assert self._ending is not None, "the last stage chooses"
        assert decoding is not None, "a model with a decoder has rules"
        position = each.position + len(each.rows)
        logits = self._ending.logits(hidden[-1:])[0].cpu()  # [V]
        ruled = decoding.ruled(logits, first=position == one.first)
        chosen = draw(ruled, Choice(one.sampling, position, one.history))
        if one.history is not None:
            one.history.chose(position, chosen.token)
        return to_row(chosen)
