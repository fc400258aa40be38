"""Keys and values of one session: a cache a layer, which a step that comes again may rewind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from planner.plan import Span
from runtime.compute.torch_device import CPU
from runtime.models.spec import DecoderSpec

# A cache grows by this many tokens: 0.5 MB a layer in Gemma 3 270M.
GROWTH_TOKENS: Final = 256
# How far behind its furthest position a windowed cache can always go back: one step of the
# pipeline, the longest being 512 tokens. A longer step can be taken back as long as it is the last.
REWIND_TOKENS: Final = 512


@dataclass(slots=True, eq=False)
class _Rows:
    """Keys and values [K, capacity, D] at positions from `first` on."""

    keys: Tensor
    values: Tensor
    first: int  # the oldest token still held
    lent: int  # before this position they are another session's too, and nobody writes there


class LayerCache:
    """One layer's keys and values, at consecutive positions from `first` to `end`.

    A full layer keeps everything. A windowed layer drops what no token can see any more, but not
    at once: it can `truncate` to the start of its last step, and to any position up to
    REWIND_TOKENS behind the furthest it has reached. So it holds at most
    window - 1 + max(REWIND_TOKENS, the longest step) tokens, and room for GROWTH_TOKENS more.
    """

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        window: int | None,
        context: int,
        device: torch.device = CPU,
    ) -> None:
        self.window = window
        self.context = context
        self.end = 0  # the position of the next token
        nothing = torch.empty(kv_heads, 0, head_dim, device=device)
        self._rows = _Rows(nothing, nothing, first=0, lent=0)  # replaced at once, never altered

    @property
    def shape(self) -> tuple[int, int]:
        """Of a token's keys, and of its values: heads and their size."""
        heads, _, size = self._rows.keys.shape
        return heads, size

    @property
    def size_bytes(self) -> int:
        """What is allocated, used or not; what is shared counts for each session that has it."""
        return self._rows.keys.nbytes + self._rows.values.nbytes

    def reaches(self, position: int) -> bool:
        """Whether a token at `position` would find all that it sees: before it and not dropped."""
        return position <= self.end and self._rows.first <= self._oldest(position)

    @property
    def least(self) -> int:
        """The first position that it can go back to; to 0 it always can."""
        first = self._rows.first
        return 0 if self.window is None or not first else first + self.window - 1

    def borrow(self, lender: LayerCache, end: int) -> bool:
        """Goes on from the tokens before `end` that another session's cache has.

        Nothing is copied yet: whichever of the two writes before `end`, or the borrower behind it,
        moves to memory of its own first. Another thread may append to the lender at `end` or behind
        it meanwhile. False, and nothing is borrowed, where the lender has dropped what is needed.
        """
        rows = lender._rows  # read once: that thread may put others in their place
        if rows.first > self._oldest(end):
            return False
        rows.lent = max(rows.lent, end)
        shared = slice(0, end - rows.first)
        keys, values = rows.keys[:, shared], rows.values[:, shared]
        self._rows, self.end = _Rows(keys, values, rows.first, lent=end), end
        return True

    def truncate(self, position: int) -> None:
        """Forgets everything at and after `position`; a position not yet reached changes nothing.

        Raises GenerationFailed when a windowed layer has dropped what the token there would see.
        """
        if position >= self.end:
            return
        if position <= 0:  # with nothing before it nothing is missing
            empty = slice(0, 0)
            self._rows = _Rows(self._rows.keys[:, empty], self._rows.values[:, empty], 0, 0)
        elif not self.reaches(position):
            raise GenerationFailed(
                f"the cache cannot go back from token {self.end} to {position}: with a window of "
                f"{self.window} it rewinds {REWIND_TOKENS} tokens or one step; replay the session"
            )
        self.end = max(position, 0)

    def append(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
        """Adds keys and values [K, S, D] at `position`, which must be the end.

        Returns those that the S tokens may see, [K, T, D] each, as views that hold until the next
        append, and the position of the first. Raises GenerationFailed for a gap or a full context.
        """
        count = keys.shape[1]
        self.reserve(position, count)
        rows = self._rows
        start = position - rows.first
        rows.keys[:, start : start + count] = keys
        rows.values[:, start : start + count] = values
        self.end = position + count
        seen = max(rows.first, self._oldest(position))
        visible = slice(seen - rows.first, self.end - rows.first)
        return rows.keys[:, visible], rows.values[:, visible], seen

    def packed(self, end: int) -> tuple[int, Tensor]:
        """For another device: the oldest position still held, and what is there and behind it, up
        to `end` if it has come so far, as [N, 2 x K x D]: a token's keys, then its values.
        """
        end, rows = min(end, self.end), self._rows
        held = slice(0, max(0, end - rows.first))
        both = torch.stack((rows.keys[:, held], rows.values[:, held]))  # [2, K, N, D]
        return rows.first, both.permute(2, 0, 1, 3).flatten(1).cpu()

    def begin(self, first: int, count: int) -> None:
        """Forgets everything, and makes room for `count` tokens from `first` on, for `unpack`.

        Raises GenerationFailed for a full context, and where the next one would find too little.
        """
        if first > self._oldest(first + count):
            raise GenerationFailed(
                f"a cache that begins at token {first} is of no use at {first + count}"
            )
        if first + count > self.context:
            raise GenerationFailed(f"{first + count} tokens are more than {self.context}")
        nothing = slice(0, 0)
        keys, values = self._rows.keys[:, nothing], self._rows.values[:, nothing]
        self._rows, self.end = _Rows(keys, values, first, lent=first), first
        self.reserve(first, count)

    def unpack(self, rows: Tensor) -> None:
        """Appends tokens [N, 2 x K x D] as another device packed them."""
        heads, size = self.shape
        keys, values = rows.view(len(rows), 2, heads, size).permute(1, 2, 0, 3)  # [K, N, D] each
        self.append(self.end, keys, values)

    def reserve(self, position: int, count: int) -> None:
        """Makes room for `count` tokens at `position`; appending them then allocates nothing.

        Raises GenerationFailed for a gap or a full context.
        """
        if position != self.end:
            raise GenerationFailed(
                f"expected the token at position {self.end}, got {position}; replay the session"
            )
        if position + count > self.context:
            raise GenerationFailed(
                f"the context of {self.context} tokens is full; start a new session"
            )
        self._make_room(count)

    def _make_room(self, count: int) -> None:
        """Drops old tokens or grows, so that `count` more fit behind the end and are ours alone."""
        rows = self._rows
        capacity = rows.keys.shape[1]
        if self.end + count - rows.first <= capacity and self.end >= rows.lent:
            return
        oldest = rows.first
        if self.window is not None:
            last_rewind = min(self.end, self.end + count - REWIND_TOKENS)
            oldest = max(rows.first, last_rewind - self.window + 1)
        kept = slice(oldest - rows.first, self.end - rows.first)
        needed = self.end + count - oldest
        # A windowed layer that has begun to drop moves its tokens once in GROWTH_TOKENS.
        spare = GROWTH_TOKENS if oldest > rows.first else 0
        capacity = min(self.context, -(-needed // GROWTH_TOKENS) * GROWTH_TOKENS + spare)
        keys, values = _moved(rows.keys, kept, capacity), _moved(rows.values, kept, capacity)
        self._rows = _Rows(keys, values, oldest, lent=0)

    def _oldest(self, position: int) -> int:
        """The first token that the one at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


def _moved(held: Tensor, kept: slice, capacity: int) -> Tensor:
    moved = held.new_empty(held.shape[0], capacity, held.shape[2])
    moved[:, : kept.stop - kept.start] = held[:, kept]
    return moved


class SessionCache:
    """The caches of one session for the layers of one stage."""

    def __init__(
        self, spec: DecoderSpec, span: Span, context: int, device: torch.device = CPU
    ) -> None:
        """`context` bounds the session; it may be less than the model's."""
        self._spec_context = spec.context
        self.context = bound = min(context, spec.context)
        self.layers = [
            LayerCache(spec.kv_heads, spec.head_dim, layer.window, bound, device)
            for layer in spec.layers[span.first : span.last]
        ]

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)

    @property
    def end(self) -> int:
        """The position of the next token, which all layers have come to."""
        return min((layer.end for layer in self.layers), default=0)

    def limit(self, context: int) -> None:
        """Bounds the session that goes on with these caches."""
        self.context = min(context, self._spec_context)
        for layer in self.layers:
            layer.context = self.context

    def reaches(self, position: int) -> bool:
        """Whether the session can go on at `position`."""
        return all(layer.reaches(position) for layer in self.layers)

    def borrow(self, lender: SessionCache, end: int) -> bool:
        """Goes on from another session's tokens before `end`; see LayerCache.borrow.

        False where some layer has dropped what is needed: then these caches are of no use.
        """
        return all(
            mine.borrow(theirs, end)
            for mine, theirs in zip(self.layers, lender.layers, strict=True)
        )

    def truncate(self, position: int) -> None:
        """Forgets everything at and after `position` in each layer; see LayerCache.truncate."""
        for layer in self.layers:
            layer.truncate(position)
