"""The end of a walk: rows to the lead, which sends them on, or to all devices of the stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planner.plan import Span
from runtime.walks import numbers
from runtime.walks.exchange import Exchange, others


def collect(
    exchange: Exchange,
    own: Tensor,
    owned: Sequence[Sequence[Span]],
    wanted: Sequence[int] | None,
    *,
    everywhere: bool,
) -> Tensor | None:
    """The wanted rows of the pass in their order, or all of them, [W, hidden]; on devices other
    than the lead None, unless they are wanted `everywhere`. `owned` are the rows of each device,
    `own` those of this one, [R, hidden].
    """
    places = [[row for span in spans for row in range(span.first, span.last)] for spans in owned]
    asked = None if wanted is None else frozenset(wanted)
    chosen = [
        [index for index, row in enumerate(rows) if asked is None or row in asked]
        for rows in places
    ]
    mine = own[chosen[exchange.me]]
    targets = others(exchange) if everywhere else [0] if exchange.me else []
    if targets and len(mine):
        exchange.send(numbers.COLLECTED, dict.fromkeys(targets, mine), exact=True)
    if exchange.me and not everywhere:
        return None
    found = [mine[:0]]
    for one, indices in enumerate(chosen):
        if indices:
            shape = (len(indices), own.shape[1])
            is_mine = one == exchange.me
            found.append(mine if is_mine else exchange.take(one, numbers.COLLECTED, shape))
    rows = [rows[index] for rows, kept in zip(places, chosen, strict=True) for index in kept]
    at = {row: index for index, row in enumerate(rows)}
    order = sorted(at) if wanted is None else wanted
    return torch.cat(found)[[at[row] for row in order]]
