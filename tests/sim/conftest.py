"""The model and the undisturbed texts of every simulated home."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.sim.seeds import Theatre


@pytest.fixture(scope="session")
def theatre() -> Iterator[Theatre]:
    with Theatre.open() as opened:
        yield opened
