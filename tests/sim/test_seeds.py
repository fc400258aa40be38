"""Random homes in random trouble: whatever happened, nothing forbidden did, and it ends well.

One seed alone: potluck chaos --seeds 1 --first-seed 17
"""

from __future__ import annotations

import pytest

from apps.sim.seeds import play

SEEDS = 200
CHUNK = 10


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_any_trouble_ends_in_one_view(first: int) -> None:
    """Tests 8 and 9 of the design's 26: loss, order, duplicates, pauses, cuts; 200 seeds here."""
    for seed in range(first, first + CHUNK):
        played = play(seed)
        assert not played.wrong, "\n".join([*played.wrong, "again: " + played.again])
