"""The walk that cuts rows alone: every device has all weights, and sends its keys and values early.

Where all see all (an encoder) a tile's keys and values travel while the other tiles go from their
attention to the next one. Where a token sees those before it, a device needs only what comes from
the devices with earlier rows; what it sends to them is for prompts that go on, and nobody waits for
it before the end of the turn.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from planner.plan import Span
from runtime.models.block import Run
from runtime.models.parts import AttentionPart, Layer, Part
from runtime.walks import numbers
from runtime.walks.at import at_rows, sees_all
from runtime.walks.chains import Chain, Marks, Needs, interleave
from runtime.walks.collect import collect
from runtime.walks.exchange import Exchange, Key, others, to_others
from runtime.walks.rows import owners_of, tiles_of
from runtime.walks.wanted import Wanted


class SequenceParallel:
    """The walk of one device of a stage through one turn."""

    is_shared = True

    def __init__(self, exchange: Exchange, units: Sequence[Span], tiles: int) -> None:
        """`units` are the shares of the rows, in 1 / ROW_UNITS."""
        self._exchange = exchange
        self._units = units
        self._tiles = min(tiles, numbers.MAX_TILES)

    def run(
        self,
        layers: Sequence[Layer[Any]],
        hidden: Tensor,
        places: Sequence[Any],
        wanted: Wanted = None,
        *,
        everywhere: bool = False,
    ) -> Tensor | None:
        """See `runtime.walks.walk.Walk`. Every device is given all rows of the pass."""
        self._exchange.start_pass()
        if sees_all(places):
            return self._all_see_all(layers, hidden, wanted, everywhere=everywhere)
        return self._each_sees_earlier(layers, hidden, places, wanted, everywhere=everywhere)

    # --- an encoder's -----------------------------------------------------------------------------

    def _all_see_all(
        self,
        layers: Sequence[Layer[Any]],
        hidden: Tensor,
        wanted: Wanted,
        *,
        everywhere: bool,
    ) -> Tensor | None:
        owners = owners_of(Span(0, len(hidden)), self._units)
        tiles = [_tiles_in(one, self._tiles) for one in owners]
        turn = _Turn(self._exchange, layers, tiles)
        chains = [turn.chain(index, hidden) for index in range(len(tiles[self._exchange.me]))]
        own = interleave(chains, self._exchange, turn.marks)
        rows = torch.cat(own) if own else hidden[:0]
        owned = [[one] for one in owners]
        return collect(self._exchange, rows, owned, wanted, everywhere=everywhere)

    # --- a decoder's ------------------------------------------------------------------------------

    def _each_sees_earlier(
        self,
        layers: Sequence[Layer[Any]],
        hidden: Tensor,
        places: Sequence[Sequence[Run]],
        wanted: Wanted,
        *,
        everywhere: bool,
    ) -> Tensor | None:
        """Each run is cut by itself, so that every device has the same part of each."""
        exchange, runs = self._exchange, places[0]
        cut = [owners_of(Span(run.first, run.first + run.count), self._units) for run in runs]
        owned = [[spans[one] for spans in cut] for one in range(exchange.count)]
        order = sorted(range(exchange.count), key=lambda one: self._units[one].first)
        own = torch.cat([hidden[span.first : span.last] for span in owned[exchange.me]])
        place = order.index(exchange.me)
        for depth, layer in enumerate(layers):
            own = self._layer(layer, depth, own, places[depth], owned, order[:place])
        for later in order[place + 1 :]:
            for depth, runs in enumerate(places):
                self._remember(depth, later, runs, owned[later])
        return collect(exchange, own, owned, wanted, everywhere=everywhere)

    def _layer(
        self,
        layer: Layer[Any],
        depth: int,
        own: Tensor,
        runs: Sequence[Run],
        owned: Sequence[Sequence[Span]],
        earlier: Sequence[int],
    ) -> Tensor:
        """Own rows [R, hidden] through a layer."""
        if not len(own):
            for one in earlier:
                self._remember(depth, one, runs, owned[one])
            return own
        mine = _runs_of(runs, owned[self._exchange.me])
        x = layer.enter(own)
        for index, part in enumerate(layer.parts):
            opened = part.opening(x)
            if index:
                inner = part.inside(opened, mine)
            else:
                attention = cast(AttentionPart[Any], part)
                q, keys, values = attention.project(opened, mine)
                sent = to_others(self._exchange, as_rows(keys, values))
                self._exchange.send(numbers.before(depth, 0), sent)
                for one in earlier:
                    self._remember(depth, one, runs, owned[one])
                inner = attention.attend(q, keys, values, mine)
            own, x = layer.connect(index, own, part.closing(inner))
        return own

    def _remember(
        self, depth: int, origin: int, runs: Sequence[Run], spans: Sequence[Span]
    ) -> None:
        """Another device's keys and values into this layer's caches, behind what is there."""
        theirs = _runs_of(runs, spans)
        if not theirs:
            return
        heads, dim = theirs[0].cache.shape
        shape = (sum(run.count for run in theirs) * 2 * heads, dim)
        rows = self._exchange.take(origin, numbers.before(depth, 0), shape)
        keys, values = by_head(rows, heads)
        for run in theirs:
            part = slice(run.first, run.first + run.count)
            run.cache.append(run.position, keys[:, part], values[:, part])


class _Turn:
    """What the chains of an encoder's pass share."""

    def __init__(
        self, exchange: Exchange, layers: Sequence[Layer[Any]], tiles: list[list[Span]]
    ) -> None:
        self.marks = Marks()
        self._exchange = exchange
        self._layers = layers
        self._tiles = tiles  # by device
        self._own: dict[tuple[int, int], Tensor] = {}  # keys above values of own tiles, by layer
        self._seen: dict[int, Tensor] = {}  # those of all rows, by layer

    def chain(self, tile: int, hidden: Tensor) -> Chain:
        """An own tile through all layers: [R, hidden]"""
        rows = self._tiles[self._exchange.me][tile]
        own = hidden[rows.first : rows.last]
        at = at_rows(None, rows)
        for depth, layer in enumerate(self._layers):
            x = layer.enter(own)
            for index, part in enumerate(layer.parts):
                opened = part.opening(x)
                if index:
                    inner = part.inside(opened, at)
                else:
                    inner = yield from self._attend(part, opened, at, depth, tile)
                own, x = layer.connect(index, own, part.closing(inner))
        return own

    def _attend(
        self, part: Part[Any], opened: Tensor, at: Any, depth: int, tile: int
    ) -> Generator[Needs, None, Tensor]:
        attention = cast(AttentionPart[Any], part)
        q, keys, values = attention.project(opened, at)
        sent = to_others(self._exchange, as_rows(keys, values))
        self._exchange.send(numbers.before(depth, 0, tile), sent)
        self._own[depth, tile] = torch.stack((keys, values))  # [2, K, S, D]
        self.marks.set((depth, tile))
        if tile:  # the first one waits for the pieces, which can be taken once
            yield Needs(marks=(depth,))
        else:
            yield Needs(self._pieces(depth), self._own_tiles(depth))
            self._seen = {depth: self._all(depth, keys.shape[0], keys.shape[2])}
            self.marks.set(depth)
        seen = self._seen[depth]
        return attention.attend(q, seen[0], seen[1], at)

    def _pieces(self, depth: int) -> tuple[Key, ...]:
        """The keys and values of all other devices' tiles."""
        return tuple(
            (one, numbers.before(depth, 0, tile))
            for one in others(self._exchange)
            for tile in range(len(self._tiles[one]))
        )

    def _own_tiles(self, depth: int) -> tuple[Hashable, ...]:
        return tuple((depth, tile) for tile in range(len(self._tiles[self._exchange.me])))

    def _all(self, depth: int, heads: int, dim: int) -> Tensor:
        """Keys above values of all rows in their order, [2, K, T, D]."""
        found: list[tuple[int, Tensor]] = []
        for one, tiles in enumerate(self._tiles):
            for tile, rows in enumerate(tiles):
                if one == self._exchange.me:
                    both = self._own.pop((depth, tile))
                else:
                    number, shape = numbers.before(depth, 0, tile), (len(rows) * 2 * heads, dim)
                    came = self._exchange.take(one, number, shape)
                    both = torch.stack(by_head(came, heads))
                found.append((rows.first, both))
        return torch.cat([both for _, both in sorted(found, key=lambda each: each[0])], dim=2)


def as_rows(keys: Tensor, values: Tensor) -> Tensor:
    """[K, S, D] each as [S 2 K, D], to travel: with 8 bits, every head has a scale of its own."""
    return torch.stack((keys, values)).permute(2, 0, 1, 3).reshape(-1, keys.shape[2])


def by_head(rows: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What `as_rows` made of keys and values [K, S, D]."""
    both = rows.view(-1, 2, heads, rows.shape[1]).permute(1, 2, 0, 3)  # [2, K, S, D]
    return both[0], both[1]


def _tiles_in(rows: Span, tiles: int) -> list[Span]:
    """A device's rows in tiles; none where it has none."""
    if not len(rows):
        return []
    return [
        Span(rows.first + one.first, rows.first + one.last) for one in tiles_of(len(rows), tiles)
    ]


def _runs_of(runs: Sequence[Run], spans: Sequence[Span]) -> list[Run]:
    """The parts of the runs that lie in a device's spans, one a run, counted in its own rows."""
    found, first = [], 0
    for run, span in zip(runs, spans, strict=True):
        if len(span):
            found.append(Run(first, len(span), run.position + span.first - run.first, run.cache))
        first += len(span)
    return found
