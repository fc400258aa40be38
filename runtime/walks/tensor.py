"""The walk that all rows take on every device (Megatron): heads and columns cut, two sums a layer.

What decoding does where a layer is spread over devices: a pass of one token has no rows to share.
Few rows go straight to everybody, one hop; with many each sums some of the rows for all, which is
2 (N - 1) / N of the bytes in place of N - 1 times them. Sums are added in one order on all devices,
so that all go on with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planner.plan import FEW_ROWS, Span, even_units
from runtime.models.parts import Layer
from runtime.walks import numbers
from runtime.walks.exchange import Exchange, others, to_others
from runtime.walks.rows import owners_of
from runtime.walks.wanted import Wanted, of_all


class TensorParallel:
    """The walk of one device of a stage through one turn."""

    is_shared = True

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._even = even_units(exchange.count)

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
        for depth, (layer, at) in enumerate(zip(layers, places, strict=True)):
            x = layer.enter(hidden)
            for index, part in enumerate(layer.parts):
                added = part.closing(part.inside(part.opening(x), at))
                total = self._sum(added, depth, index)
                hidden, x = layer.connect(index, hidden, total)
        if self._exchange.me and not everywhere:
            return None
        return of_all(hidden, wanted)

    def _sum(self, added: Tensor, depth: int, index: int) -> Tensor:
        number = numbers.behind(depth, index)
        if len(added) <= FEW_ROWS:
            self._exchange.send(number, to_others(self._exchange, added), exact=True)
            return self._added(added, number)
        owners = owners_of(Span(0, len(added)), self._even)
        parts = [added[rows.first : rows.last] for rows in owners]
        self._exchange.send(number, {to: parts[to] for to in others(self._exchange)})
        mine = owners[self._exchange.me]
        own = self._added(added[mine.first : mine.last], number)
        number = numbers.before(depth, index)
        self._exchange.send(number, to_others(self._exchange, own))
        pieces = [
            own
            if one == self._exchange.me
            else self._exchange.take(one, number, (len(rows), added.shape[1]))
            for one, rows in enumerate(owners)
        ]
        return torch.cat(pieces)

    def _added(self, part: Tensor, number: int) -> Tensor:
        """The sum of what all devices have of these rows, in the order of their shares."""
        shape = (part.shape[0], part.shape[1])
        total: Tensor | None = None
        for one in range(self._exchange.count):
            mine = one == self._exchange.me
            piece = part if mine else self._exchange.take(one, number, shape)
            total = piece if total is None else total + piece
        assert total is not None
        return total
