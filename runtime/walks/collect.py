"""The end of a walk: rows to the lead, which sends them on, or to all devices of the stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planner.plan import Span
from runtime.walks import numbers
from runtime.walks.exchange import Exchange, others
from runtime.walks.wanted import Summary, Wanted


def collect(
    exchange: Exchange,
    own: Tensor,
    owned: Sequence[Sequence[Span]],
    wanted: Wanted,
    *,
    everywhere: bool,
) -> Tensor | None:
    """What is wanted of the rows of the pass, rows in their order, [W, hidden]; on devices other
    than the lead None, unless it is wanted `everywhere`. `owned` are the rows of each device,
    `own` those of this one, [R, hidden].
    """
    places = [[row for span in spans for row in range(span.first, span.last)] for spans in owned]
    if isinstance(wanted, Summary):
        return _summed_up(exchange, own, places, wanted, everywhere=everywhere)
    return _chosen(exchange, own, places, wanted, everywhere=everywhere)


def _summed_up(
    exchange: Exchange,
    own: Tensor,
    places: Sequence[Sequence[int]],
    wanted: Summary,
    *,
    everywhere: bool,
) -> Tensor | None:
    """[1, hidden], of a row from each device that has any."""
    mine = wanted.part(own) if len(own) else own
    parts = _gathered(exchange, mine, [min(1, len(rows)) for rows in places], everywhere=everywhere)
    return None if parts is None else wanted.whole(parts, sum(map(len, places)))


def _chosen(
    exchange: Exchange,
    own: Tensor,
    places: Sequence[Sequence[int]],
    wanted: Sequence[int] | None,
    *,
    everywhere: bool,
) -> Tensor | None:
    asked = None if wanted is None else frozenset(wanted)
    chosen = [
        [index for index, row in enumerate(rows) if asked is None or row in asked]
        for rows in places
    ]
    mine, counts = own[chosen[exchange.me]], [len(indices) for indices in chosen]
    found = _gathered(exchange, mine, counts, everywhere=everywhere)
    if found is None:
        return None
    rows = [rows[index] for rows, kept in zip(places, chosen, strict=True) for index in kept]
    at = {row: index for index, row in enumerate(rows)}
    order = sorted(at) if wanted is None else wanted
    return found[[at[row] for row in order]]


def _gathered(
    exchange: Exchange, mine: Tensor, counts: Sequence[int], *, everywhere: bool
) -> Tensor | None:
    """So many rows from each device, in the order of their shares; None where they do not go."""
    targets = others(exchange) if everywhere else [0] if exchange.me else []
    if targets and len(mine):
        exchange.send(numbers.COLLECTED, dict.fromkeys(targets, mine), exact=True)
    if exchange.me and not everywhere:
        return None
    found = [mine[:0]]
    for one, count in enumerate(counts):
        if count:
            shape = (count, mine.shape[1])
            is_mine = one == exchange.me
            found.append(mine if is_mine else exchange.take(one, numbers.COLLECTED, shape))
    return torch.cat(found)
