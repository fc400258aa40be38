"""Random homes in random trouble: whatever happened, nothing forbidden did, and it ends well.

One seed alone: potluck chaos --seeds 1 --first-seed 17
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.sim.seeds import Theatre

MEETING = range(0, 400, 2)  # homes whose devices only meet: many, for they are quick
TALKING = range(1, 25, 2)
CHUNK = 10


def play(theatre: Theatre, seeds: range) -> None:
    for seed in seeds:
        played = theatre.play(seed)
        assert not played.wrong, "\n".join([*played.wrong, "again: " + played.again])


@pytest.mark.parametrize("first", range(0, len(MEETING), CHUNK))
def test_any_trouble_ends_in_one_view(theatre: Theatre, first: int) -> None:
    """Tests 8 and 9: loss, order, duplicates, pauses, cuts; 200 seeds, more in `make nightly`."""
    play(theatre, MEETING[first : first + CHUNK])


@pytest.mark.parametrize("first", range(0, len(TALKING), 4))
def test_any_trouble_leaves_conversations_whole(theatre: Theatre, first: int) -> None:
    """Tests 3, 8, 11 and 15, wherever chance puts them."""
    play(theatre, TALKING[first : first + 4])


@pytest.mark.parametrize("seed", [6, 7])
def test_the_same_seed_is_the_same_history_whatever_the_hashes(tmp_path: Path, seed: int) -> None:
    code = (
        "from apps.sim.seeds import Theatre\n"
        f"with Theatre.open() as theatre: print(theatre.play({seed}).digest)"
    )
    digests = []
    for hashes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(done.stdout)
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64
