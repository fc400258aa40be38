"""Whose rows are whose: a pass is cut into tiles, each tile among the devices of the stage."""

from __future__ import annotations

from collections.abc import Sequence

from planner.plan import ROW_UNITS, Span
from runtime.models.block import Run


def tiles_of(rows: int, tiles: int) -> list[Span]:
    """A pass of so many rows as at most `tiles` runs of rows, as even as can be; none is empty."""
    count = max(1, min(tiles, rows))
    marks = [rows * index // count for index in range(count + 1)]
    return [Span(first, last) for first, last in zip(marks, marks[1:], strict=False)]


def owners_of(tile: Span, units: Sequence[Span]) -> list[Span]:
    """Which rows of a tile each device of the stage has, by its share of ROW_UNITS; some may have
    none of a short tile.
    """
    return [
        Span(
            tile.first + len(tile) * one.first // ROW_UNITS,
            tile.first + len(tile) * one.last // ROW_UNITS,
        )
        for one in units
    ]


def runs_in(runs: Sequence[Run], rows: Span) -> list[Run]:
    """The parts of the runs that lie in these rows, counted from the first of them."""
    found = []
    for run in runs:
        first, last = max(run.first, rows.first), min(run.first + run.count, rows.last)
        if first < last:
            position = run.position + first - run.first
            found.append(Run(first - rows.first, last - first, position, run.cache))
    return found
