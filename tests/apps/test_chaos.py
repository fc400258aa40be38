"""The short form of `make chaos`: real processes and weights, some faults once, in one home."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from apps.chaos.case import Case
from apps.chaos.equipment import Equipment
from apps.chaos.faults import FAULTS
from apps.chaos.history import lines_of
from apps.chaos.home import Home
from apps.chaos.record import Record
from apps.chaos.runs import MEMORY, run_case
from apps.chaos.vitals import Vitals
from apps.sim.check import violations
from runtime.stored.model_files import DEFAULT_MODEL, has_default_model

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("gemma"),
    pytest.mark.skipif(
        not has_default_model(), reason="the default model's package is not installed ([gemma])"
    ),
]
DEVICES = 4
CASES = {fault: Case.of(seed, range(DEVICES, DEVICES + 1)) for seed, fault in enumerate(FAULTS)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home() -> AsyncIterator[Home]:
    """All that this machine can have but clocks: a process under another clock is slow."""
    wanted = (Equipment(network=True), Equipment(disks=True))
    equipment = Equipment()
    for one in wanted:
        if one.why_not() is None:
            equipment |= one
    async with asyncio.timeout(90):
        manager = Home.of(DEVICES, MEMORY, equipment=equipment)
        home = await manager.__aenter__()
    try:
        yield home
    finally:
        await manager.__aexit__(None, None, None)


async def once(home: Home, fault: str) -> Record:
    """A run with nothing wrong. Suspicions are not counted here: beside other tests a device may
    well be late, and nobody is held dead for it.
    """
    if reason := FAULTS[fault].equipment.why_not():
        pytest.skip(reason)
    record = await run_case(home, CASES[fault], DEFAULT_MODEL, fault)
    assert record.wrong == (), record
    assert record.tokens_equal
    assert record.deaths == 0
    return record


async def test_kill_9_in_mid_generation_costs_no_token(home: Home) -> None:
    """Reliability test 1."""
    record = await once(home, "kill")
    assert record.detect_ms is not None
    assert record.detect_ms < 3000


@pytest.mark.lan
async def test_a_cable_out_in_mid_generation_costs_no_token(home: Home) -> None:
    """Reliability test 2."""
    record = await once(home, "unplug")
    assert record.detect_ms is not None
    assert record.detect_ms < 10_000


async def test_a_device_that_stops_for_two_seconds_is_not_dead(home: Home) -> None:
    """Reliability test 6."""
    record = await once(home, "pause")
    assert record.detect_ms is None


async def test_what_they_all_said_holds_together(home: Home) -> None:
    """Reliability test 26, the checker's part: it judges real devices as it does simulated ones."""
    lines = lines_of(home.devices)
    assert {"started", "epoch", "joined"} <= {line["event"] for line in lines}
    assert violations(lines) == []


async def test_the_vitals_are_those_of_the_process(home: Home) -> None:
    vitals = await Vitals.of(home.devices[0])
    assert vitals.rss_kib > 10_000
    assert vitals.files > 10
    assert vitals.tasks > 5
    assert vitals.threads >= 1
