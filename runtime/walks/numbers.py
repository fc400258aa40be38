"""The numbers of a turn's pieces: the same on all devices of a stage, whoever comes first."""

from __future__ import annotations

from typing import Final

MAX_TILES: Final = 8
_PHASES: Final = 2  # in front of a part, and behind it
_PARTS: Final = 3
COLLECTED: Final = 0  # the rows that the lead sends on

PER_LAYER: Final = _PARTS * _PHASES * MAX_TILES


def before(layer: int, part: int, tile: int = 0) -> int:
    """A tile's rows on their way to a part's opening, or its keys and values."""
    return 1 + ((layer * _PARTS + part) * _PHASES) * MAX_TILES + tile


def behind(layer: int, part: int, tile: int = 0) -> int:
    """A tile's rows on their way from a part's closing."""
    return before(layer, part, tile) + MAX_TILES
