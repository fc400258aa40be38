"""Galaxy's hybrid walk: each device has some heads and columns of a layer, and some of the rows.

Before a part its rows are gathered (AllGather, GEMM); what a part adds is scattered back, summed,
to whoever has the row (GEMM, ReduceScatter); what stands in between is done for own rows alone
(papers: Galaxy, INFOCOM 2024, section III). Two things differ. Pieces go straight to who needs
them, not around a ring: as many bytes on a switch, but one hop in place of N - 1, and partial sums
are added in fp32 by the owner of their rows. And a tile is a run of rows of all devices: the chain
from one attention to the next is the same work row by row, so a tile goes all along it while the
others travel.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from planner.plan import Span
from runtime.models.parts import AttentionPart, Layer, Part
from runtime.walks import numbers
from runtime.walks.at import at_rows, sees_all
from runtime.walks.chains import Chain, Marks, Needs, interleave
from runtime.walks.collect import collect
from runtime.walks.exchange import Exchange, others, to_others
from runtime.walks.rows import owners_of, tiles_of
from runtime.walks.wanted import Wanted


class Hybrid:
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
        spans = tiles_of(len(hidden), self._tiles)
        turn = _Turn(self._exchange, layers, places, [owners_of(one, self._units) for one in spans])
        chains = [turn.chain(index, tile, hidden) for index, tile in enumerate(spans)]
        own = interleave(chains, self._exchange, turn.marks)
        owned = [list(of) for of in zip(*turn.owners, strict=True)]  # by device, by tile
        return collect(self._exchange, torch.cat(own), owned, wanted, everywhere=everywhere)


class _Turn:
    """What the chains of a pass share."""

    def __init__(
        self,
        exchange: Exchange,
        layers: Sequence[Layer[Any]],
        places: Sequence[Any],
        owners: list[list[Span]],
    ) -> None:
        self.marks = Marks()
        self.owners = owners  # by tile, by device
        self._exchange = exchange
        self._layers = layers
        self._places = places
        # Keys above values by layer and tile, where all see all.
        self._seen: dict[tuple[int, int], Tensor] = {}

    def chain(self, tile: int, rows: Span, hidden: Tensor) -> Chain:
        """A tile through all layers; own rows of it [R, hidden] come out."""
        mine = self.owners[tile][self._exchange.me]
        own = hidden[mine.first : mine.last]
        for depth, layer in enumerate(self._layers):
            at = at_rows(self._places[depth], rows)
            x = layer.enter(own) if len(mine) else own
            for index, part in enumerate(layer.parts):
                whole = yield from self._gather(x, rows, tile, numbers.before(depth, index, tile))
                opened = part.opening(whole)
                if index:
                    inner = part.inside(opened, at)
                else:
                    inner = yield from self._attend(part, opened, at, depth, tile)
                added = yield from self._scatter(
                    part.closing(inner), rows, tile, numbers.behind(depth, index, tile)
                )
                if len(mine):
                    own, x = layer.connect(index, own, added)
        return own

    def _gather(
        self, x: Tensor, rows: Span, tile: int, number: int
    ) -> Generator[Needs, None, Tensor]:
        """Own rows to all others, and theirs: [tile's rows, hidden]"""
        exchange, owners = self._exchange, self.owners[tile]
        if len(x):
            exchange.send(number, to_others(exchange, x))
        origins = [one for one in others(exchange) if len(owners[one])]
        yield Needs(tuple((one, number) for one in origins))
        whole = x.new_empty(len(rows), x.shape[1])
        for one in range(exchange.count):
            if len(owners[one]):
                place = slice(owners[one].first - rows.first, owners[one].last - rows.first)
                shape = (len(owners[one]), x.shape[1])
                whole[place] = x if one == exchange.me else exchange.take(one, number, shape)
        return whole

    def _scatter(
        self, added: Tensor, rows: Span, tile: int, number: int
    ) -> Generator[Needs, None, Tensor]:
        """Each device's rows of `added` [tile's rows, hidden] to it; the sums of one's own."""
        exchange, owners = self._exchange, self.owners[tile]
        parts = [added[one.first - rows.first : one.last - rows.first] for one in owners]
        exchange.send(number, {to: parts[to] for to in others(exchange) if len(owners[to])})
        mine = parts[exchange.me]
        if not len(mine):
            return mine
        yield Needs(tuple((one, number) for one in others(exchange)))
        total: Tensor | None = None
        for one in range(exchange.count):  # in one order on every device
            shape = (len(mine), added.shape[1])
            part = mine if one == exchange.me else exchange.take(one, number, shape)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _attend(
        self, part: Part[Any], opened: Tensor, at: Any, depth: int, tile: int
    ) -> Generator[Needs, None, Tensor]:
        """Self-attention of a tile: where all see all it waits for the other tiles, else for the
        one before, whose keys and values have to be in the cache.
        """
        attention = cast(AttentionPart[Any], part)
        q, keys, values = attention.project(opened, at)
        if not sees_all(self._places):
            if tile:
                yield Needs(marks=((depth, tile - 1),))
            inner = attention.attend(q, keys, values, at)
            self.marks.set((depth, tile))
            return inner
        self._seen[depth, tile] = torch.stack((keys, values))  # [2, K, S, D]
        self._seen.pop((depth - 2, tile), None)  # all are past it, or none could be here
        self.marks.set((depth, tile))
        count = len(self.owners)
        yield Needs(marks=tuple((depth, one) for one in range(count)))
        seen = torch.cat([self._seen[depth, one] for one in range(count)], dim=2)
        return attention.attend(q, seen[0], seen[1], at)
