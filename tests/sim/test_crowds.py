"""More than 16 devices: each pings a few, and all hear of what happens to any (section 5)."""

from __future__ import annotations

import asyncio
from typing import Any

from apps.sim.check import violations
from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.home import Home
from mesh.events import PeerDied, PeerSuspected
from tests.sim.crowds import end_of, long_up, measured, wrong


def test_who_goes_from_a_crowd_is_missed_by_all_and_nobody_else_is() -> None:
    """Tests 2 and 7, for many devices."""
    found: dict[str, Any] = run_virtual(measured(17, seed=1, loss=0.0))
    assert found["quiet_false_deaths"] == found["quiet_suspicions"] == 0
    for end in found["ends"]:
        assert end["seen_by"] == end["others"], end
        assert end["last_s"] <= {"crash": 1.0, "power": 8.0, "leave": 0.5}[end["how"]], end
        assert end["false_deaths"] == end["false_suspicions"] == 0, end
    assert found["new_leader_last_s"] <= 6.0
    assert found["one_leader"]
    assert found["messages_per_device_s"] <= 32.0


def test_lost_messages_kill_nobody_in_a_crowd() -> None:
    """One in twenty is lost for good, which no TCP link does: worse than any home."""

    async def scenario() -> None:
        home = long_up(20, seed=2, loss=0.05)
        await asyncio.sleep(30.0)
        assert wrong(home, PeerDied, 0.0) == 0
        for device in home.running:
            await device.crash()

    run_virtual(scenario())


def test_a_home_grows_into_a_crowd_and_shrinks_back() -> None:
    async def scenario() -> None:
        home = Home(20, seed=3)
        for number, device in enumerate(home.devices.values()):
            device.hints = ("d0",) if number else ()
            device.start()
            await asyncio.sleep(0.3)
        await asyncio.sleep(8.0)
        assert home.disagreements() == []
        assert home[0].node is not None
        assert home[0].node._core.is_crowd
        for number in range(9, 20):
            await home[number].leave()
            await asyncio.sleep(0.3)
        await asyncio.sleep(5.0)
        assert home.disagreements() == []
        assert not home[0].node._core.is_crowd
        assert home.history.of(PeerDied, PeerSuspected) == []
        assert violations(home.history.lines()) == []
        for device in home.running:
            await device.crash()

    run_virtual(scenario())


def test_a_crowd_that_was_cut_in_two_is_one_again() -> None:
    """Test 8, for many devices: each side goes on alone, and all meet when the cut heals."""

    async def scenario() -> None:
        home = long_up(20, seed=4)
        await asyncio.sleep(5.0)
        names = list(home.devices)
        home.network.cut(set(names[:13]), set(names[13:]))
        await asyncio.sleep(25.0)
        assert home.disagreements(list(home.devices.values())[:13]) == []
        home.network.heal()
        since_s = virtual_loop().time()
        while home.disagreements():
            assert virtual_loop().time() - since_s < 20.0, home.disagreements()
            await asyncio.sleep(0.1)
        for device in home.running:
            await device.crash()

    run_virtual(scenario())


def test_a_device_that_sleeps_in_a_crowd_accuses_nobody_when_it_wakes() -> None:
    """Test 6, for many devices."""

    async def scenario() -> None:
        home = long_up(24, seed=5)
        await asyncio.sleep(5.0)
        since_s = virtual_loop().time()
        sleeper = home[7]
        sleeper.stop()
        await asyncio.sleep(15.0)
        sleeper.go_on()
        await asyncio.sleep(6.0)
        assert home.disagreements() == []
        said = [e for e in home.history.of(PeerDied, since_s=since_s) if e.device == "d7"]
        assert said == []
        for device in home.running:
            await device.crash()

    run_virtual(scenario())


def test_a_restarted_device_of_a_crowd_is_a_new_process_to_all() -> None:
    async def scenario() -> None:
        home = long_up(24, seed=6)
        await asyncio.sleep(5.0)
        since_s = virtual_loop().time()
        back = home[3]
        await back.crash()
        back.hints = ("d0", "d1")
        back.start()
        await asyncio.sleep(3.0)
        assert home.disagreements() == []
        died = home.history.of(PeerDied, since_s=since_s)
        assert {e.device for e in died} == set(home.devices) - {"d3"}
        for device in home.running:
            await device.crash()

    run_virtual(scenario())


def test_a_crowd_of_forty_sees_a_crash_within_a_second() -> None:
    """Test 1, for many devices."""

    async def scenario() -> None:
        home = long_up(40, seed=7)
        await asyncio.sleep(5.0)
        victim = next(device for device in home.running if not device.view.leads)
        end = await end_of(home, victim, "crash")
        assert end["seen_by"] == end["others"]
        assert end["last_s"] <= 1.0
        for device in home.running:
            await device.crash()

    run_virtual(scenario())
