"""A stage: this device's run of layers under one plan. Pure compute, for the worker thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.chosen import to_row
from runtime.compute.torch_device import CPU
from runtime.heads.chooser import Chooser, WholeHead
from runtime.heads.question import Choice
from runtime.history import History
from runtime.kv_cache import SessionCache
from runtime.models.block import Block, Run
from runtime.models.head import Head
from runtime.prefix import common_tokens
from runtime.sampling import Sampling
from runtime.walks.walk import WHOLE, Walk
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
    prefix: bytes = b""  # the chain of the prompt
    held: int = 0  # tokens that all layers have, and that no turn under way takes back
    computing: bool = False  # in the worker's thread, right now
    kept_as: bytes = b""  # the chain under which its cache is kept when that is over


class Stage:
    """Layers [first, last) of a model; the first stage embeds, the last has the head."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        span: Span,
        blocks: Mapping[int, Block],
        head: Head | None,
        device: torch.device = CPU,
    ) -> None:
        """Blocks and head are on `device`; what comes in and goes out is the processor's."""
        self.span = span
        self.embeds = span.first == 0
        self._is_last = span.last == len(checkpoint.spec.layers)
        self._checkpoint = checkpoint
        self._blocks = [blocks[index] for index in range(span.first, span.last)]
        self.head = head
        self._chooser: Chooser | None = None if head is None else WholeHead(head)
        self._device = device
        self._open: dict[SessionId, _Open] = {}
        # Between the loop and the worker: what a turn computes, and how far each session holds.
        self._lock = threading.RLock()
        # Caches of sessions that ended, by the chain of what they hold; the oldest goes first.
        self._kept: OrderedDict[bytes, SessionCache] = OrderedDict()

    @property
    def widest(self) -> int:
        """How many numbers a row has at most that devices of this stage send each other."""
        spec = self._checkpoint.spec
        return max(spec.hidden_size, 2 * spec.kv_size)

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
        again: a conversation that ended left them here, or one that is open has come so far. At
        most `places` caches stay in memory.
        """
        with self._lock:
            self._open.pop(session, None)
            cache, held = self._take(prefix, context)
            self._open[session] = _Open(cache, sampling, history, prefix, held)
            self.limit(places)
        return held

    def choose_with(self, chooser: Chooser) -> None:
        """From now on tokens are chosen so: the head here has not all of the vocabulary."""
        self._chooser = chooser

    def limit(self, places: int) -> None:
        """Lets go of caches that are kept beyond `places`; those of open sessions stay."""
        with self._lock:
            while self._kept and len(self._open) + len(self._kept) > places:
                self._kept.popitem(last=False)

    def close(self, session: SessionId, prefix: bytes = b"") -> None:
        """Ends a session; its cache is kept for another that begins with the tokens of `prefix`.
        Where the worker still writes to it, which the lead of a stage may be done with already, it
        is kept from then on.
        """
        with self._lock:
            opened = self._open.pop(session, None)
            if opened is not None and opened.computing:
                opened.kept_as = prefix
            elif opened is not None:
                self._keep(opened, prefix)

    def _keep(self, opened: _Open, prefix: bytes) -> None:
        if prefix:
            self._kept.pop(prefix, None)
            self._kept[prefix] = opened.cache

    @torch.inference_mode()
    def turn(self, slices: Sequence[Slice], walk: Walk = WHOLE) -> list[Tensor | None]:
        """Runs the slices of different sessions through this stage's layers together.

        Returns for each [N, hidden] for the next stage; on the last stage the row of `to_row`, or
        None when nothing is to be chosen or the session is closed. The same slice may come twice:
        whatever the caches hold from its position on is forgotten first, so the answer is the same.
        Raises GenerationFailed for a slice that its cache cannot take; then none was computed.

        With a `walk` of several devices each of them runs the same slices; the lead's answers
        count, the others have None. It fails where a session is closed on one of them.
        """
        with self._lock:  # the loop may close a session, or lend of it, while this thread computes
            opened = [self._open.get(each.session) for each in slices]
            going = [
                (each, one) for each, one in zip(slices, opened, strict=True) if one is not None
            ]
            if walk.is_shared and len(going) < len(slices):
                raise GenerationFailed("a conversation is closed already on a device of the stage")
            for each, one in going:
                one.computing, one.held = True, min(one.held, each.position)
        try:
            for each, one in going:
                _prepare(one.cache, each)
            results = iter(self._compute(going, walk) if going else ())
            with self._lock:
                for each, one in going:
                    one.held = each.position + len(each.rows)
                    self._keep(one, one.kept_as)
        finally:
            for _, one in going:
                one.computing = False
        return [None if one is None else next(results) for one in opened]

    def _compute(self, going: Sequence[tuple[Slice, _Open]], walk: Walk) -> Sequence[Tensor | None]:
        lengths = [len(each.rows) for each, _ in going]
        ends = list(accumulate(lengths))
        places = [
            [
                Run(end - length, length, each.position, one.cache.layers[index])
                for end, length, (each, one) in zip(ends, lengths, going, strict=True)
            ]
            for index in range(len(self._blocks))
        ]
        choosing = [index for index, (each, _) in enumerate(going) if each.choose]
        wanted = [ends[index] - 1 for index in choosing] if self._is_last else None
        hidden = self._enter([each for each, _ in going]).to(self._device)  # [S, hidden]
        out = walk.run(self._blocks, hidden, places, wanted)
        results: list[Tensor | None] = [None] * len(going)
        if out is None:
            return results
        if not self._is_last:
            return torch.split(out.cpu(), lengths)
        if choosing:
            assert self._chooser is not None, "the lead of the last stage chooses"
            choices = [_choice(*going[index]) for index in choosing]
            chosen = self._chooser.choose(out, choices)
            for index, choice, one in zip(choosing, choices, chosen, strict=True):
                if choice.history is not None:
                    choice.history.chose(choice.position, one.token)
                results[index] = to_row(one)
        return results

    def _enter(self, slices: Sequence[Slice]) -> Tensor:
        rows = slices[0].rows if len(slices) == 1 else torch.cat([each.rows for each in slices])
        if not self.embeds:
            return rows
        positions = [torch.arange(s.position, s.position + len(s.rows)) for s in slices]
        return self._checkpoint.embed(rows[:, 0], torch.cat(positions))

    def _take(self, prefix: bytes, context: int) -> tuple[SessionCache, int]:
        """A cache that has the most of `prefix`, and how much: a kept one, or one that shares the
        rows of an open session, whichever has more; else an empty one.
        """
        found = max(self._kept, key=lambda chain: self._known(chain, prefix), default=b"")
        held = self._known(found, prefix)
        if held and not self._kept[found].reaches(held):
            held = 0
        borrowed = self._borrow(prefix, context, held)
        if borrowed is not None:
            return borrowed
        if held:
            cache = self._kept.pop(found)
            cache.truncate(held)
            cache.limit(context)
            return cache, held
        return self._empty(context), 0

    def _known(self, chain: bytes, prefix: bytes) -> int:
        """How many tokens of `prefix` a kept cache has. It may have fewer than its chain names: of
        a stage whose rows are cut, only the lead has what was said in answer.
        """
        return min(common_tokens(chain, prefix), self._kept[chain].end) if chain else 0

    def _borrow(self, prefix: bytes, context: int, least: int) -> tuple[SessionCache, int] | None:
        """A cache that begins with what an open session holds of `prefix`, if more than `least`."""
        with self._lock:
            lenders = [
                (min(common_tokens(one.prefix, prefix), one.held), one.cache)
                for one in self._open.values()
            ]
            lenders = [(held, lender) for held, lender in lenders if held > least]
            for held, lender in sorted(lenders, key=lambda each: each[0], reverse=True):
                cache = self._empty(context)
                if cache.borrow(lender, held):
                    return cache, held
        return None

    def _empty(self, context: int) -> SessionCache:
        spec = self._blocks[0].attention.spec if self._blocks else self._checkpoint.spec
        return SessionCache(spec, self.span, context, self._device)


def _prepare(cache: SessionCache, each: Slice) -> None:
    """Goes back to where the slice begins, and makes room for all of it.

    Caches stay, activations go: room made in the midst of them would keep their memory from being
    used again by wider ones, 25 MB for a prompt of 512 tokens in Gemma 3 270M.
    """
    cache.truncate(each.position)
    for layer in cache.layers:
        layer.reserve(each.position, len(each.rows))


def _choice(each: Slice, one: _Open) -> Choice:
    return Choice(one.sampling, each.position + len(each.rows), one.history)
