"""A stage: this device's run of layers under one plan. Pure compute, for the worker thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.ids import SessionId
from planner.plan import Span
from runtime.chosen import to_row
from runtime.history import History
from runtime.kv_cache import SessionCache
from runtime.models.block import Block, Run
from runtime.models.head import Head
from runtime.prefix import common_tokens
from runtime.sampling import Sampling, draw
from runtime.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive tokens of one session: its whole step, or a part of it."""

    session: SessionId
    position: int  # of the first
    rows: Tensor  # [N, 1] int32 token ids on the first stage, [N, hidden] elsewhere
    choose: bool  # whether the last stage is to choose what follows
    is_source: bool = False  # what an encoder is to read, and not tokens; always the whole step


@dataclass(slots=True, eq=False)
class _Open:
    """What a stage holds of one session."""

    cache: SessionCache
    sampling: Sampling
    history: History | None
    computing: bool = False  # in the worker's thread, right now


class Stage:
    """Layers [first, last) of a model; the first stage embeds, the last has the head."""

    def __init__(
        self, checkpoint: Checkpoint, span: Span, blocks: Mapping[int, Block], head: Head | None
    ) -> None:
        self.span = span
        self.embeds = span.first == 0
        self._checkpoint = checkpoint
        self._blocks = [blocks[index] for index in range(span.first, span.last)]
        self._head = head
        self._open: dict[SessionId, _Open] = {}
        # Caches of sessions that ended, by the chain of what they hold; the oldest goes first.
        self._kept: OrderedDict[bytes, SessionCache] = OrderedDict()

    def open(
        self,
        session: SessionId,
        sampling: Sampling,
        context: int,
        *,
        prefix: bytes = b"",
        history: History | None = None,
        places: int = 1,
    ) -> int:
        """Makes a cache; what the session held before is forgotten.

        Returns how many tokens of the prompt, named by the chain `prefix`, need not be computed
        again, for a conversation that ended left them here. At most `places` caches stay in memory.
        """
        self._open.pop(session, None)
        cache, held = self._take(prefix, context)
        self._open[session] = _Open(cache, sampling, history)
        self.limit(places)
        return held

    def limit(self, places: int) -> None:
        """Lets go of caches that are kept beyond `places`; those of open sessions stay."""
        while self._kept and len(self._open) + len(self._kept) > places:
            self._kept.popitem(last=False)

    def close(self, session: SessionId, prefix: bytes = b"") -> None:
        """Ends a session; its cache is kept for another that begins with the tokens of `prefix`,
        unless the worker still writes to it.
        """
        opened = self._open.pop(session, None)
        if opened is not None and prefix and not opened.computing:
            self._kept.pop(prefix, None)
            self._kept[prefix] = opened.cache

    @torch.inference_mode()
    def turn(self, slices: Sequence[Slice]) -> list[Tensor | None]:
        """Runs the slices of different sessions through this stage's layers together.

        Returns for each [N, hidden] for the next stage; on the last stage the row of `to_row`, or
        None when nothing is to be chosen or the session is closed. The same slice may come twice:
        whatever the caches hold from its position on is forgotten first, so the answer is the same.
        Raises GenerationFailed for a slice that its cache cannot take; then none was computed.
        """
        # Taken at once: the loop may close a session while this thread computes.
        opened = [self._open.get(each.session) for each in slices]
        going = [(each, one) for each, one in zip(slices, opened, strict=True) if one is not None]
        try:
            for each, one in going:
                one.computing = True
                _rewind(one.cache, each)
            results = iter(self._compute(going) if going else ())
        finally:
            for _, one in going:
                one.computing = False
        return [None if one is None else next(results) for one in opened]

    def _compute(self, going: Sequence[tuple[Slice, _Open]]) -> list[Tensor | None]:
        starts, total = [], 0
        for each, _ in going:
            starts.append(total)
            total += len(each.rows)
        hidden = self._enter([each for each, _ in going])  # [S, hidden]
        for index, block in enumerate(self._blocks):
            runs = [
                Run(start, len(each.rows), each.position, one.cache.layers[index])
                for start, (each, one) in zip(starts, going, strict=True)
            ]
            hidden = block(hidden, runs)
        ends = [start + len(each.rows) for start, (each, _) in zip(starts, going, strict=True)]
        if self._head is None:
            return [hidden[start:end] for start, end in zip(starts, ends, strict=True)]
        choosing = [index for index, (each, _) in enumerate(going) if each.choose]
        results: list[Tensor | None] = [None] * len(going)
        if choosing:
            logits = self._head.logits(hidden[[ends[index] - 1 for index in choosing]])  # [C, V]
            for row, index in zip(logits, choosing, strict=True):
                results[index] = _choose(row, *going[index])
        return results

    def _enter(self, slices: Sequence[Slice]) -> Tensor:
        rows = slices[0].rows if len(slices) == 1 else torch.cat([each.rows for each in slices])
        if not self.embeds:
            return rows
        positions = [torch.arange(s.position, s.position + len(s.rows)) for s in slices]
        return self._checkpoint.embed(rows[:, 0], torch.cat(positions))

    def _take(self, prefix: bytes, context: int) -> tuple[SessionCache, int]:
        """A kept cache that has the most of `prefix`, and how much; else an empty one."""
        found = max(self._kept, key=lambda chain: common_tokens(chain, prefix), default=b"")
        held = common_tokens(found, prefix)
        if held and self._kept[found].reaches(held):
            cache = self._kept.pop(found)
            cache.truncate(held)
            cache.limit(context)
            return cache, held
        return SessionCache(self._checkpoint.spec, self.span, context), 0


def _rewind(cache: SessionCache, each: Slice) -> None:
    cache.truncate(each.position)
    for layer in cache.layers:
        layer.check(each.position, len(each.rows))


def _choose(logits: Tensor, each: Slice, one: _Open) -> Tensor:
    position = each.position + len(each.rows)
    chosen = draw(logits, one.sampling, position, one.history)
    if one.history is not None:
        one.history.chose(position, chosen.token)
    return to_row(chosen)
