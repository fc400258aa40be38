"""Plans whose stages several devices share."""

from __future__ import annotations

from dataclasses import replace

from planner.plan import ROW_UNITS, Plan, Share, Span, Split, Stage, Wire
from runtime.checkpoints import Model
from tests.runtime.room import make_plan, peer


def group(
    layers: Span,
    devices: tuple[int, ...],
    split: Split,
    *,
    heads: int,
    columns: int,
    parts: tuple[int, ...] | None = None,
    tiles: int = 1,
    wire: Wire = Wire.FP32,
) -> Stage:
    """A stage over `devices` in the proportion of `parts`; even without them."""
    parts = parts or (1,) * len(devices)
    rows = _cut(ROW_UNITS, parts)
    if split is Split.SEQUENCE:  # the lead has the last rows
        rows = _cut(ROW_UNITS, parts[::-1])[::-1]
        shares = [Share(peer(one), rows=of) for one, of in zip(devices, rows, strict=True)]
    else:
        shares = [
            Share(peer(one), heads=a, columns=b, rows=r)
            for one, a, b, r in zip(
                devices, _cut(heads, parts), _cut(columns, parts), rows, strict=True
            )
        ]
    return Stage(layers, tuple(shares), split, tiles, wire)


def grouped(checkpoint: Model, *stages: Stage, counter: int = 1) -> Plan:
    return replace(make_plan(checkpoint, (), counter), stages=stages)


def _cut(whole: int, parts: tuple[int, ...]) -> list[Span]:
    """`whole` in these proportions, nobody without anything."""
    marks, done = [0], 0
    for index, part in enumerate(parts):
        done += part
        left = len(parts) - index - 1
        marks.append(min(max(marks[-1] + 1, round(whole * done / sum(parts))), whole - left))
    return [Span(first, last) for first, last in zip(marks, marks[1:], strict=False)]
