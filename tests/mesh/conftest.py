"""A test of the mesh that blocks its event loop fails (test 5): beats would come late."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx

# Small files are written and read in the loop, rarely, where they must be on disk before anything
# else happens (epochs, secrets, certificates for TLS).
FILES = ("os.", "io.", "builtins.")


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """Whatever waits (sleeping, sockets, locks) raises BlockingError where `mesh` calls it inside
    a running loop.
    """
    with blockbuster_ctx("mesh") as guard:
        for name, function in guard.functions.items():
            if name.startswith(FILES):
                function.deactivate()
        yield
