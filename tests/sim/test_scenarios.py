"""Named accidents in a simulated home, each against the figure that the design promises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from apps.sim.check import violations
from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.home import Device, Home
from mesh.errors import LinkClosed
from mesh.events import LeaderElected, PeerDied, PeerJoined, PeerLeft, PeerSuspected

SEEDS = range(8)
Scenario = Callable[[Home], Awaitable[None]]


def play(scenario: Scenario, devices: int, seeds: range = SEEDS) -> None:
    """Runs the scenario in a settled home, once per seed, and judges the history."""

    async def once(seed: int) -> None:
        home = Home(devices, seed)
        home.start()
        await asyncio.sleep(home.rng.uniform(5.0, 6.0))  # at any moment between two beats
        await scenario(home)
        assert violations(home.history.lines()) == [], seed
        for device in home.running:
            await device.crash()

    for seed in seeds:
        run_virtual(once(seed))


def now_s() -> float:
    return virtual_loop().time()


def leader_of(home: Home) -> Device:
    (leader,) = (device for device in home.running if device.view.leads)
    return leader


def others(home: Home, device: Device) -> list[Device]:
    return [other for other in home.running if other is not device]


def agreed(home: Home) -> bool:
    return not home.disagreements()


async def agree(home: Home, within_s: float) -> float:
    """Waits for one view with one leader; the seconds it took."""
    since_s = now_s()
    while not agreed(home):
        assert now_s() - since_s < within_s, home.disagreements()
        await asyncio.sleep(0.01)
    return now_s() - since_s


def died_after(home: Home, victim: Device, since_s: float) -> list[float]:
    """How long each other device took to declare the victim dead."""
    entries = home.history.of(PeerDied, since_s=since_s)
    times = [e.at_s - since_s for e in entries if e.what.peer == victim.peer]  # type: ignore[union-attr]
    assert len(times) == len(others(home, victim)), "everybody saw it, once"
    return times


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_a_quiet_home_meets_elects_one_leader_and_stays_so(devices: int) -> None:
    async def scenario(home: Home) -> None:
        assert agreed(home)
        epoch = home[0].view.epoch
        await asyncio.sleep(600)
        assert agreed(home)
        assert home[0].view.epoch == epoch
        assert home.history.of(PeerDied) == []
        assert home.history.of(PeerSuspected) == []

    play(scenario, devices, range(3))


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_crash_of_the_leader_is_seen_within_1_s_and_a_new_one_leads_soon(devices: int) -> None:
    async def scenario(home: Home) -> None:
        leader, since_s = leader_of(home), now_s()
        await leader.crash()
        await agree(home, within_s=2.5)
        assert max(died_after(home, leader, since_s)) <= 1.0
        elected = [e.at_s - since_s for e in home.history.of(LeaderElected, since_s=since_s)]
        assert max(elected) <= 1.5
        assert len(home.history.of(LeaderElected, since_s=since_s)) == devices - 1, "one election"

    play(scenario, devices)


@pytest.mark.parametrize("devices", [3, 5])
def test_power_cut_is_seen_between_2_5_and_4_s(devices: int) -> None:
    async def scenario(home: Home) -> None:
        leader, since_s = leader_of(home), now_s()
        await leader.power_off()
        await agree(home, within_s=5.5)
        times = died_after(home, leader, since_s)
        assert min(times) >= 2.5
        assert max(times) <= 4.0
        elected = [e.at_s - since_s for e in home.history.of(LeaderElected, since_s=since_s)]
        assert max(elected) - max(times) <= 1.5

    play(scenario, devices)


def test_power_cut_of_one_of_two_is_seen_without_confirmation_within_4_s() -> None:
    async def scenario(home: Home) -> None:
        leader, since_s = leader_of(home), now_s()
        await leader.power_off()
        await agree(home, within_s=5.5)
        assert 3.0 <= max(died_after(home, leader, since_s)) <= 4.0

    play(scenario, 2)


def test_halves_heal_into_one_view_in_3_s_and_the_majority_keeps_its_leader() -> None:
    async def scenario(home: Home) -> None:
        names = list(home.devices)
        few, many = set(names[:2]), set(names[2:])
        home.network.cut(few, many)
        await asyncio.sleep(30)
        side = [home.devices[name] for name in sorted(many)]
        (leader,) = (device for device in side if device.view.leads)
        assert len(leader.view.alive) == 3
        for _ in range(3):  # the minority holds elections of its own: its counter runs ahead
            (minor,) = (home.devices[n] for n in few if home.devices[n].view.leads)
            await minor.crash()
            await asyncio.sleep(1.5)
            minor.start()
            await asyncio.sleep(3)
        home.network.heal()
        await agree(home, within_s=3.0)
        await asyncio.sleep(5)
        assert leader.view.leads, "the majority's leader leads all"
        assert agreed(home)

    play(scenario, 5)


@pytest.mark.parametrize("devices", [2, 4])
def test_even_halves_heal_into_one_view_in_3_s(devices: int) -> None:
    async def scenario(home: Home) -> None:
        names = list(home.devices)
        home.network.cut(set(names[: devices // 2]), set(names[devices // 2 :]))
        await asyncio.sleep(30)
        assert all(len(device.view.alive) == devices // 2 for device in home.running)
        home.network.heal()
        await agree(home, within_s=3.0)

    play(scenario, devices)


def test_one_way_cut_ends_in_mutual_agreement() -> None:
    async def scenario(home: Home) -> None:
        deaf, heard = home[0], home[1]
        home.network.wire("d1", "d0").cut = True
        await asyncio.sleep(10)
        assert not deaf.view.is_here(heard.peer)
        assert not heard.view.is_here(deaf.peer), "a link that works one way is no link"
        before = len(home.history.entries)
        await asyncio.sleep(20)
        assert len(home.history.entries) == before, "and it is a stable agreement"
        home.network.heal()
        await agree(home, within_s=3.0)

    play(scenario, 2)


def test_one_way_cut_among_three_deposes_nobody() -> None:
    async def scenario(home: Home) -> None:
        leader = leader_of(home)
        one, two = others(home, leader)
        home.network.wire(one.name, two.name).cut = True
        await asyncio.sleep(20)
        assert leader.view.leads
        assert not one.view.is_here(two.peer)
        assert not two.view.is_here(one.peer)
        home.network.heal()
        await agree(home, within_s=3.0)
        assert leader.view.leads

    play(scenario, 3)


def test_bridge_between_leader_and_follower_is_no_endless_election() -> None:
    async def scenario(home: Home) -> None:
        leader = leader_of(home)
        lone, between = others(home, leader)
        home.network.cut({leader.name}, {lone.name})
        await asyncio.sleep(10)
        assert between.view.leader == leader.peer
        epoch = leader.view.epoch
        await asyncio.sleep(30)
        assert leader.view.epoch == epoch
        home.network.heal()
        await agree(home, within_s=3.0)
        assert leader.view.epoch == epoch, "nobody had to be deposed"

    play(scenario, 3)


@pytest.mark.parametrize("devices", [2, 4])
def test_stopped_for_less_than_2_s_is_nothing(devices: int) -> None:
    async def scenario(home: Home) -> None:
        epoch = home[0].view.epoch
        for device in home.devices.values():
            device.stop()
            await asyncio.sleep(1.9)
            device.go_on()
            await asyncio.sleep(3)
        assert home.history.of(PeerDied) == []
        assert agreed(home)
        assert home[0].view.epoch == epoch

    play(scenario, devices)


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("which", ["leader", "follower"])
def test_stopped_for_6_s_is_dead_then_back_in_3_s_and_kills_nobody(
    devices: int, which: str
) -> None:
    async def scenario(home: Home) -> None:
        leader = leader_of(home)
        device = leader if which == "leader" else others(home, leader)[0]
        device.stop()
        await asyncio.sleep(6)
        assert all(not other.view.is_here(device.peer) for other in home.running)
        since_s = now_s()
        device.go_on()
        await agree(home, within_s=3.0)
        await asyncio.sleep(5)
        assert home.history.of(PeerDied, since_s=since_s) == []
        assert agreed(home)
        if devices > 2 or which == "follower":
            assert not device.view.leads, "the others' leader stays"

    play(scenario, devices)


@pytest.mark.parametrize("devices", [3, 4])
def test_a_device_that_doubts_itself_goes_with_the_others_when_the_leader_dies(
    devices: int,
) -> None:
    async def scenario(home: Home) -> None:
        leader = leader_of(home)
        doubtful = others(home, leader)[0]
        for _ in range(3):  # its timers come late: a busy machine
            doubtful.stop()
            await asyncio.sleep(0.6)
            doubtful.go_on()
            await asyncio.sleep(0.3)
        home.network.cut({leader.name}, {other.name for other in others(home, leader)})
        await asyncio.sleep(5.5)
        assert not home.disagreements(others(home, leader)), "it followed the dead leader on"

    play(scenario, devices)


def test_flapping_device_changes_no_leader() -> None:
    async def scenario(home: Home) -> None:
        leader = leader_of(home)
        epoch, flapping = leader.view.epoch, others(home, leader)[0]
        for _ in range(40):
            await flapping.crash()
            await asyncio.sleep(1.5)
            flapping.start()
            await asyncio.sleep(1.5)
        await agree(home, within_s=1.0)
        assert leader.view.epoch == epoch

    play(scenario, 4, range(3))


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_goodbye_reaches_all_in_half_a_second_and_nobody_suspects(which: str) -> None:
    async def scenario(home: Home) -> None:
        leader = leader_of(home)
        device, since_s = (leader if which == "leader" else others(home, leader)[0]), now_s()
        await device.leave()
        assert now_s() - since_s <= 0.5
        await asyncio.sleep(0.01)
        left = home.history.of(PeerLeft, since_s=since_s)
        assert len(left) == 3
        assert max(e.at_s for e in left) - since_s <= 0.5
        await agree(home, within_s=1.5)
        await asyncio.sleep(10)
        assert home.history.of(PeerSuspected, PeerDied, since_s=since_s) == []
        device.start()
        await agree(home, within_s=3.0)

    play(scenario, 4)


def test_a_fourth_device_joins_and_changes_neither_leader_nor_epoch() -> None:
    async def scenario(home: Home) -> None:
        await home[3].leave()
        await agree(home, within_s=2.0)
        epoch, since_s = home[0].view.epoch, now_s()
        home[3].start()
        await agree(home, within_s=1.0)
        await asyncio.sleep(5)
        assert home[3].view.epoch == epoch
        elections = home.history.of(LeaderElected, since_s=since_s)
        assert {entry.device for entry in elections} <= {"d3"}

    play(scenario, 4)


def test_a_returning_leader_deposes_nobody() -> None:
    async def scenario(home: Home) -> None:
        old = leader_of(home)
        await old.crash()
        await agree(home, within_s=2.0)
        new, epoch = leader_of(home), leader_of(home).view.epoch
        old.start()
        await agree(home, within_s=1.0)
        await asyncio.sleep(10)
        assert new.view.leads
        assert new.view.epoch == epoch

    play(scenario, 4)


def test_a_leader_that_restarts_at_once_is_a_new_process_to_all() -> None:
    async def scenario(home: Home) -> None:
        old = leader_of(home)
        counter, since_s = old.view.epoch.counter, now_s()  # type: ignore[union-attr]
        await old.crash()
        old.start()
        await asyncio.sleep(3)
        assert agreed(home)
        joined = [e for e in home.history.of(PeerJoined, since_s=since_s) if e.device != old.name]
        assert {e.what.peer for e in joined} == {old.peer}  # type: ignore[union-attr]
        assert old.view.epoch.counter == counter + 1  # type: ignore[union-attr]

    play(scenario, 3)


def test_the_fittest_device_stands_first() -> None:
    async def scenario() -> None:
        home = Home(4, seed=1)
        strong = max(home.devices.values(), key=lambda device: device.peer)  # last by id
        for device in home.devices.values():
            device.start(merit=1.0 if device is strong else 0.2)
        await asyncio.sleep(4)
        assert leader_of(home) is strong

    run_virtual(scenario())


@pytest.mark.parametrize("end", ["crash", "power", "leave"])
def test_a_question_to_a_device_that_goes_fails_cleanly(end: str) -> None:
    async def scenario(home: Home) -> None:
        asker, victim = home[0], home[1]
        assert asker.node is not None
        assert victim.node is not None

        async def never(_peer: object, _body: object) -> None:
            await asyncio.sleep(1e6)

        victim.node.on_request("never", never)
        since_s = now_s()
        async with asyncio.TaskGroup() as tasks:
            question = tasks.create_task(_closed(asker, victim))
            await asyncio.sleep(0.1)
            await {"crash": victim.crash, "power": victim.power_off, "leave": victim.leave}[end]()
        assert question.result() - since_s <= (4.2 if end == "power" else 1.2)
        with pytest.raises(LinkClosed):
            await asker.node.request(victim.peer, "never", None, timeout_s=60)

    play(scenario, 3, range(3))


async def _closed(asker: Device, victim: Device) -> float:
    assert asker.node is not None
    with pytest.raises(LinkClosed):
        await asker.node.request(victim.peer, "never", None, timeout_s=60)
    return now_s()
