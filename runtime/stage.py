"""A stage: this device's run of layers under one plan. Pure compute, for the worker thread."""

from __future__ import annotations

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
from runtime.memory import Memory
from runtime.models.block import Block, Run
from runtime.models.head import Head
from runtime.sessions import Open, Sessions
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
    layers: Span | None = None  # the only ones that compute it, for they lack it; None: all


_Going = tuple[Slice, Open]


class Stage(Sessions):
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
        here = [blocks[index] for index in range(span.first, span.last)]
        spec = here[0].attention.spec if here else checkpoint.spec
        super().__init__((checkpoint.model_id, checkpoint.precision), span, here, spec, device)
        self._is_last = span.last == len(checkpoint.spec.layers)
        self._checkpoint = checkpoint
        self.head = head
        self._chooser: Chooser | None = None if head is None else WholeHead(head)

    @property
    def widest(self) -> int:
        """How many numbers a row has at most that devices of this stage send each other."""
        spec = self._checkpoint.spec
        return max(spec.hidden_size, 2 * spec.kv_size)

    def choose_with(self, chooser: Chooser) -> None:
        """From now on tokens are chosen so: the head here has not all of the vocabulary."""
        self._chooser = chooser

    @torch.inference_mode()
    def turn(self, slices: Sequence[Slice], walk: Walk = WHOLE) -> list[Tensor | None]:
        """Runs the slices of different sessions through this stage's layers together.

        Returns for each [N, hidden] for the next stage; on the last stage the row of `to_row`, or
        None when nothing is to be chosen or the session is closed. The same slice may come twice:
        whatever the caches hold from its position on is forgotten first, so the answer is the same.
        Raises GenerationFailed for a slice that its cache cannot take; then none was computed.

        With a `walk` of several devices each of them runs the same slices; the lead's answers
        count, the others have None. It fails where a session is closed on one of them.

        A slice for some `layers` alone enters the first of them as it is. What comes out is for
        the next stage where the last of them is the stage's; else it means nothing.
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
                self._prepare(one.memory, each)
            results = iter(self._compute_all(going, walk))
            with self._lock:
                for each, one in going:
                    one.held = one.cache.end if each.layers else each.position + len(each.rows)
                    self._keep_late(one)
        finally:
            for _, one in going:
                one.computing = False
        return [None if one is None else next(results) for one in opened]

    def _compute_all(self, going: Sequence[_Going], walk: Walk) -> list[Tensor | None]:
        """Those that go through the same layers together."""
        results: list[Tensor | None] = [None] * len(going)
        for layers in dict.fromkeys(each.layers for each, _ in going):
            which = [index for index, (each, _) in enumerate(going) if each.layers == layers]
            outs = self._compute([going[index] for index in which], walk, layers or self.span)
            for index, out in zip(which, outs, strict=True):
                results[index] = out
        return results

    def _compute(
        self, going: Sequence[_Going], walk: Walk, layers: Span
    ) -> Sequence[Tensor | None]:
        lengths = [len(each.rows) for each, _ in going]
        ends = list(accumulate(lengths))
        first, last = layers.first - self.span.first, layers.last - self.span.first
        places = [
            [
                Run(end - length, length, each.position, one.cache.layers[index])
                for end, length, (each, one) in zip(ends, lengths, going, strict=True)
            ]
            for index in range(first, last)
        ]
        choosing = [index for index, (each, _) in enumerate(going) if each.choose]
        wanted = [ends[index] - 1 for index in choosing] if self._is_last else None
        entered = self._enter([each for each, _ in going], layers).to(self._device)  # [S, hidden]
        out = walk.run(self._blocks[first:last], entered, places, wanted)
        results: list[Tensor | None] = [None] * len(going)
        if out is None or layers.last < self.span.last:
            return results
        if not self._is_last:
            return self._given(going, torch.split(out.cpu(), lengths))
        if choosing:
            assert self._chooser is not None, "the lead of the last stage chooses"
            choices = [_choice(*going[index]) for index in choosing]
            chosen = self._chooser.choose(out, choices)
            for index, choice, one in zip(choosing, choices, chosen, strict=True):
                if choice.history is not None:
                    choice.history.chose(choice.position, one.token)
                results[index] = to_row(one)
        return results

    def _given(self, going: Sequence[_Going], outs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What leaves the stage, once it is in the log."""
        for (each, one), out in zip(going, outs, strict=True):
            one.memory.log.add(each.position, out)
        return outs

    def _enter(self, slices: Sequence[Slice], layers: Span) -> Tensor:
        rows = slices[0].rows if len(slices) == 1 else torch.cat([each.rows for each in slices])
        if layers.first > 0:
            return rows
        positions = [torch.arange(s.position, s.position + len(s.rows)) for s in slices]
        return self._checkpoint.embed(rows[:, 0], torch.cat(positions))

    def _prepare(self, memory: Memory, each: Slice) -> None:
        """Goes back to where the slice begins, and makes room for all of it, in the layers that
        compute it.

        Caches stay, activations go: room made in the midst of them would keep their memory from
        being used again by wider ones, 25 MB for a prompt of 512 tokens in Gemma 3 270M.
        """
        layers, first = each.layers or self.span, self.span.first
        for cache in memory.cache.layers[layers.first - first : layers.last - first]:
            cache.truncate(each.position)
            cache.reserve(each.position, len(each.rows))
        if each.layers is None:
            memory.inner = None  # all layers have come as far, so nobody asks for it any more


def _choice(each: Slice, one: Open) -> Choice:
    return Choice(one.sampling, each.position + len(each.rows), one.history)
