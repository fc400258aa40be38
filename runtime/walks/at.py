"""Where the rows of a pass stand, for each kind of layer: what `at` is for its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from planner.plan import Span
from runtime.models.decoder_block import Target
from runtime.walks.rows import runs_in


def sees_all(places: Sequence[Any]) -> bool:
    """Whether every row sees all others, as in an encoder; `places` are those of its layers."""
    return all(place is None for place in places)


def at_rows(place: Any, rows: Span) -> Any:
    """The same for some of the rows."""
    if place is None:
        return rows.first
    if isinstance(place, Target):
        return replace(place, position=place.position + rows.first)
    return runs_in(place, rows)
