"""A test of the mesh that blocks its event loop fails (test 5): beats would come late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """Sleeping, file and socket calls of `mesh` raise BlockingError inside a running loop."""
    with blockbuster_ctx("mesh") as guard:
        _allow(guard)
        yield


def _allow(guard: BlockBuster) -> None:
    """What the mesh may wait for in its loop: small files, rarely, that must be on disk first."""
    for function in guard.functions.values():
        function.can_block_in("mesh/state_store.py", {"load", "save", "_write"})
        function.can_block_in("mesh/config.py", {"write_private"})
