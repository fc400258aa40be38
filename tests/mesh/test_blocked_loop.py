"""The guard itself: who blocks the loop is found out (test 5)."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import pytest
from blockbuster import BlockingError

import mesh

BLOCKS = """
import time

def stage():
    time.sleep(5.0)
"""


async def test_a_stage_that_blocks_the_loop_for_five_seconds_fails_its_test() -> None:
    """Test 5: at once, and not after five seconds."""
    module = ModuleType("stage")
    path = Path(mesh.__file__).parent / "stage.py"  # blamed are the files of `mesh`
    exec(compile(BLOCKS, str(path), "exec"), module.__dict__)  # noqa: S102 - a text of ours
    started_s = time.monotonic()
    with pytest.raises(BlockingError):
        module.stage()
    assert time.monotonic() - started_s < 1.0
