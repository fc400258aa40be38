"""The wall clock decides nothing (test 25): home devices boot in 1970, and are set right later."""

from __future__ import annotations

import ast
import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from apps.sim.clock import run_virtual
from apps.sim.home import Home
from mesh.certificate import NOT_AFTER, NOT_BEFORE
from mesh.events import LeaderElected, PeerDied, PeerSuspected

ROOT = Path(__file__).parent.parent
DAY_S = 86400.0
# Where the wall clock may be read: dates for people, in answers and records that nothing reads.
TOLD_TO_PEOPLE = {
    "apps/api/openai_answers.py",
    "apps/chaos/nightly.py",
    "apps/chaos/record.py",
    "apps/chaos/rival.py",
    "apps/chaos/soak.py",
    "apps/chaos/equipment.py",  # the one that sets it
    "apps/doctor/own.py",  # which tells a person that the clock is off
    "runtime/chat/renderer.py",  # a template may name today's date
}
WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


def test_nothing_that_decides_reads_the_wall_clock() -> None:
    """Test 25."""
    found = {
        str(path.relative_to(ROOT))
        for package in ("mesh", "planner", "runtime", "apps")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and any(ast.unparse(node.func).endswith(w) for w in WALL)
    }
    assert found <= TOLD_TO_PEOPLE


@pytest.mark.parametrize("years", [-56, -10, 10])
def test_a_clock_that_is_years_off_leaves_certificates_valid(years: int) -> None:
    """Test 25: from 1970 on, and ten years to either side of today; expiry is not how we end."""
    shown = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(days=365.25 * years)
    assert NOT_BEFORE <= shown < NOT_AFTER


def test_a_wall_clock_that_jumps_makes_nobody_suspect_anybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Test 25: by a day, by ten years, to 1970, each time that somebody looks."""
    jumps = random.Random(25)
    steps_s = (DAY_S, -DAY_S, 3652 * DAY_S, -3652 * DAY_S)

    def set_wrong() -> float:
        return 0.0 if jumps.random() < 0.2 else 1.8e9 + jumps.choice(steps_s)

    monkeypatch.setattr(time, "time", set_wrong)
    monkeypatch.setattr(time, "time_ns", lambda: int(set_wrong() * 1e9))

    async def scenario() -> None:
        home = Home(4, seed=25)
        home.start()
        await asyncio.sleep(5.0)
        epochs = len(home.history.of(LeaderElected))
        await asyncio.sleep(120.0)
        assert home.disagreements() == []
        assert len(home.history.of(LeaderElected)) == epochs
        assert home.history.of(PeerSuspected, PeerDied) == []
        for device in home.running:
            await device.crash()

    run_virtual(scenario())
