"""The walk of a stage that several devices share: which one depends on how many rows there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from planner.plan import MIN_SHARED_ROWS, Split, Stage
from runtime.models.parts import Layer
from runtime.walks.exchange import Exchange
from runtime.walks.hybrid import Hybrid
from runtime.walks.sequence import SequenceParallel
from runtime.walks.tensor import TensorParallel
from runtime.walks.walk import Walk
from runtime.walks.wanted import Wanted


class Shared:
    """Of one device, in one turn, as the plan's stage says."""

    is_shared = True

    def __init__(self, stage: Stage, exchange: Exchange) -> None:
        self._stage = stage
        self._exchange = exchange

    def run(
        self,
        layers: Sequence[Layer[Any]],
        hidden: Tensor,
        places: Sequence[Any],
        wanted: Wanted = None,
        *,
        everywhere: bool = False,
    ) -> Tensor | None:
        walk = self._walk(len(hidden))
        return walk.run(layers, hidden, places, wanted, everywhere=everywhere)

    def _walk(self, rows: int) -> Walk:
        stage, exchange = self._stage, self._exchange
        if stage.split is Split.SEQUENCE:
            return SequenceParallel(exchange, stage.row_units, stage.tiles)
        if stage.split is Split.HYBRID and rows >= MIN_SHARED_ROWS:
            return Hybrid(exchange, stage.row_units, stage.tiles)
        return TensorParallel(exchange)
