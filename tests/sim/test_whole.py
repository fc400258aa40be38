"""Named accidents in simulated homes that plan, compute and talk, by the numbers of the design's
26 tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from apps.planning.messages import COMMIT_PLAN, Commit, InForce
from apps.sim.check import violations
from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.history import HOME
from apps.sim.home import Device, Home
from apps.sim.seeds import Theatre
from apps.sim.talk import Talk
from mesh.codec import to_plain
from mesh.errors import RequestFailed
from mesh.events import LeaderElected, PeerDied
from mesh.ids import SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind

Scenario = Callable[[Home, Talk], Awaitable[None]]


def play(
    theatre: Theatre, scenario: Scenario, devices: int, share: float, seeds: range = range(2)
) -> None:
    """Runs it in a settled home whose devices have memory for that share of the model each."""

    async def once(seed: int) -> None:
        shares = {f"d{number}": share for number in range(devices)}
        home = Home(devices, seed, replace(theatre.equipment, shares=shares))
        home.start()
        await asyncio.sleep(home.rng.uniform(4.0, 5.0))
        await scenario(home, Talk(home, theatre.texts))
        await home.end()
        assert violations(home.history.lines()) == [], seed

    for seed in seeds:
        run_virtual(once(seed))


def leader_of(home: Home) -> Device:
    (leader,) = (device for device in home.running if device.view.leads)
    return leader


def now_s() -> float:
    return virtual_loop().time()


def answers(home: Home, since_s: float = 0.0) -> list[dict[str, Any]]:
    return home.history.said("answered", since_s=since_s)


@pytest.mark.parametrize("point", ["plan.prepared", "share.committed", "epoch.persisted"])
def test_leader_killed_with_a_plan_half_installed(theatre: Theatre, point: str) -> None:
    """Test 3: a new leader <= 1.5 s after the death is seen, the old plan stays refused."""

    async def scenario(home: Home, talk: Talk) -> None:
        old, since_s = leader_of(home), now_s()
        owner = next(device for device in home.running if device is not old)
        old.at[point] = old.die
        talk.begin(owner, 2)
        await talk.over(20)
        assert [one["error"] for one in answers(home)] == [None]
        died_s = max(entry.at_s for entry in home.history.of(PeerDied, since_s=since_s))
        new = [e for e in home.history.of(LeaderElected, since_s=since_s) if e.device != old.name]
        elected_s = min(e.at_s for e in new if e.what.epoch.leader != old.peer)  # type: ignore[union-attr]
        assert elected_s - died_s <= 1.5
        late = [line for line in home.history.said("plan", since_s=elected_s)]
        assert late
        assert all(line["leader"] != old.name for line in late), "the old plan came in force"

    play(theatre, scenario, 4, 0.6)


def test_leader_stopped_between_prepare_and_commit_changes_nothing_when_it_comes_back(
    theatre: Theatre,
) -> None:
    """Tests 3 and 11: what it had begun comes in force with nobody else."""

    async def scenario(home: Home, talk: Talk) -> None:
        old = leader_of(home)
        others = [device for device in home.running if device is not old]
        old.at["plan.prepared"] = old.stop
        talk.begin(others[0], 2)
        await talk.over(20)
        assert [one["error"] for one in answers(home)] == [None]
        since_s = now_s()
        old.go_on()
        await asyncio.sleep(5)
        assert not home.disagreements()
        plans = home.history.said("plan", since_s=since_s)
        assert all(line["leader"] != old.name for line in plans if line["device"] != old.name)

    play(theatre, scenario, 4, 0.6)


def test_what_a_zombie_sends_of_an_older_epoch_is_refused_and_counted(theatre: Theatre) -> None:
    """Test 11: a plan, a frame and an answer, each over a link that stands."""

    async def scenario(home: Home, talk: Talk) -> None:
        zombie = leader_of(home)
        target = next(device for device in home.running if device is not zombie)
        talk.begin(target, 2)
        await talk.over(20)
        assert zombie.process is not None
        assert zombie.process.engine is not None
        node, known = zombie.process.node, zombie.process.engine.installer.report().known[0]
        zombie.stop()
        await asyncio.sleep(6)
        zombie.go_on()
        await asyncio.sleep(4)
        assert not home.disagreements()
        assert not zombie.view.leads
        assert target.process is not None
        assert target.process.engine is not None
        engine = target.process.engine
        before = engine.refused
        old = known.plan
        stale = Commit(old.epoch, (InForce(old, known.wish, 0.0),))
        with pytest.raises(RequestFailed, match="does not lead here"):
            await node.request(target.peer, COMMIT_PLAN, to_plain(stale), timeout_s=2)
        for kind in (Kind.TOKENS, Kind.CHOSEN):
            header = FrameHeader(
                epoch=old.epoch,
                plan=old.plan_id,
                session=SessionId("0" * 32),
                kind=kind,
                dtype=DType.INT32,
                choose=True,
                position=0,
                rows=1,
                row=0,
                tile_rows=1,
                width=1,
            )
            links = zombie.process.engine.links
            await links.send(target.peer, header, memoryview(bytes(4)), timeout_s=5)
        await asyncio.sleep(1)
        assert engine.refused - before == {
            "plan of a device that does not lead": 1,
            "stale epoch or plan": 1,
            "late answer": 1,
        }

    play(theatre, scenario, 4, 0.6)


@pytest.mark.parametrize("sides", [(3, 2), (2, 2), (1, 1)])
def test_partition_each_side_serves_with_its_own_devices(
    theatre: Theatre, sides: tuple[int, int]
) -> None:
    """Test 8: a session lives on one side; healed after 30 s, one view within 3 s."""

    async def scenario(home: Home, talk: Talk) -> None:
        names = list(home.devices)
        groups = [set(names[: sides[0]]), set(names[sides[0] :])]
        for name in (names[0], names[-1]):
            talk.begin(home.devices[name], 3)
        await asyncio.sleep(1)
        home.network.cut(*groups)
        since_s = now_s()
        await asyncio.sleep(8)
        asked_s = now_s()
        for name in (names[0], names[-1]):
            talk.begin(home.devices[name], 4)
        await talk.over(20)
        assert [one["error"] for one in answers(home)] == [None] * 4
        for line in home.history.said("plan", since_s=since_s + 5):
            side = next(group for group in groups if line["device"] in group)
            assert set(line["devices"]) <= side, "a plan over a cut wire"
        assert asked_s < now_s()
        await asyncio.sleep(max(0.0, since_s + 30 - now_s()))
        majority = [device.view.leader for device in home.running if device.name in groups[0]][0]
        home.network.heal()
        home.history.say(HOME, now_s(), "calm", within_s=3.0)
        await asyncio.sleep(3)
        assert not home.disagreements()
        if sides[0] > sides[1]:
            assert home[0].view.leader == majority, "the majority keeps its leader"
        for device in home.running:
            talk.begin(device, 5)
        await talk.over(20)
        assert {one["error"] for one in answers(home)} == {None}

    play(theatre, scenario, sum(sides), 1.2 if 1 in sides else 0.6)


@pytest.mark.parametrize("kind", ["bridge", "one way"])
def test_cut_that_not_everybody_sees(theatre: Theatre, kind: str) -> None:
    """Test 8: whoever can be served is, nobody waits for ever, and it ends in one view."""

    async def scenario(home: Home, talk: Talk) -> None:
        for device in home.running:
            talk.begin(device, 2)
        await asyncio.sleep(0.5)
        if kind == "bridge":
            home.network.cut({"d0"}, {"d1"})
        else:
            home.network.wire("d0", "d1").cut = True
        await asyncio.sleep(10)
        talk.begin(home[2], 3)
        await asyncio.sleep(20)
        home.network.heal()
        home.history.say(HOME, now_s(), "calm", within_s=3.0)
        await asyncio.sleep(3)
        assert not home.disagreements()
        await talk.over(30)
        assert [one["error"] for one in answers(home)] == [None] * 4

    play(theatre, scenario, 3, 0.6)


def test_two_devices_lost_at_once(theatre: Theatre) -> None:
    """Test 15: it recovers, since every layer has a copy on what is left."""

    async def scenario(home: Home, talk: Talk) -> None:
        talk.begin(home[0], 0)
        await asyncio.sleep(1)
        await asyncio.gather(home[1].crash(), home[2].crash())
        await talk.over(10)
        assert [one["error"] for one in answers(home)] == [None]

    play(theatre, scenario, 4, 0.6)


@pytest.mark.parametrize("point", ["session.replaying", "share.prepared", "plan.prepared"])
def test_a_device_lost_while_another_loss_is_mended(theatre: Theatre, point: str) -> None:
    """Test 15: a failure during recovery."""

    async def scenario(home: Home, talk: Talk) -> None:
        owner = home[4]
        talk.begin(owner, 0)
        await asyncio.sleep(1)
        plan = home.history.said("plan")[-1]["devices"]
        lost = next(home.devices[name] for name in plan if name != owner.name)
        for device in home.running:
            if device not in (owner, lost):
                device.at[point] = lambda device=device: kill_once(home, device)  # type: ignore[misc]
        await lost.crash()
        await talk.over(15)
        assert [one["error"] for one in answers(home)] == [None]

    def kill_once(home: Home, device: Device) -> None:
        for other in home.devices.values():
            other.at.clear()
        device.die()

    play(theatre, scenario, 5, 0.6)


def test_no_room_left_is_one_clear_error_within_5_s(theatre: Theatre) -> None:
    """Test 15: nobody can hold the rest; no endless retry."""

    async def scenario(home: Home, talk: Talk) -> None:
        talk.begin(home[0], 0)
        await asyncio.sleep(1)
        since_s = now_s()
        await asyncio.gather(home[1].crash(), home[2].crash())
        await talk.over(10)
        (answer,) = answers(home)
        assert "does not fit" in answer["error"]
        assert answer["at_s"] - since_s <= 5.0
        assert len(answer["tokens"]) > 0

    play(theatre, scenario, 3, 0.6)
