"""The partition search, against every placement there is."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import permutations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.ids import ModelId
from planner.cost import fits, objective_s, predict
from planner.partition import EVEN_FILL_S, Subset, fastest_placements, nearest_placements
from planner.plan import Capacity, Plan, Stage
from planner.profile import Cluster, Curve, DeviceProfile, LayerProfile, LinkProfile, ModelProfile
from planner.replan import Move, moved_bytes
from planner.request import Request
from planner.words import shortages
from tests.planner.homes import (
    MB,
    all_placements,
    device,
    lan,
    model,
    peer,
    pipeline,
    plan,
)

ONE = Capacity(1, 100)
SECONDS = st.floats(1e-4, 1e-1)


@st.composite
def homes(draw: st.DrawFn) -> Cluster:
    """Up to four devices, all different, over uneven links of which some are missing."""
    devices = tuple(
        DeviceProfile(
            peer(number),
            f"device {number}",
            draw(st.integers(0, 120)),
            Curve(((1, draw(SECONDS)), (512, draw(SECONDS)))),
            draw(SECONDS),
            draw(st.integers(0, 5)),
        )
        for number in range(draw(st.integers(1, 4)))
    )
    links = tuple(
        LinkProfile(source.device, target.device, draw(SECONDS), draw(st.floats(1e4, 1e8)))
        for source, target in permutations(devices, 2)
        if draw(st.integers(0, 9)) > 0
    )
    return Cluster(devices, links)


@st.composite
def models(draw: st.DrawFn) -> ModelProfile:
    layers = st.builds(
        LayerProfile,
        weight_bytes=st.integers(1, 40),
        kv_bytes_per_token=st.integers(0, 2),
        window=st.none(),
    )
    return ModelProfile(
        ModelId("a" * 64),
        "toy",
        tuple(draw(st.lists(layers, min_size=1, max_size=6))),
        draw(st.integers(0, 60)),
        64,
        100,
        100,
    )


@st.composite
def moves(draw: st.DrawFn, home: Cluster, of: ModelProfile) -> Move | None:
    """Perhaps from a plan that ran before, with a device that is gone."""
    if draw(st.booleans()):
        return None
    layers = len(of.layers)
    old = draw(st.sampled_from(all_placements(lan(*home.devices, device(9)), layers)))
    parts = [(device_of(stage, home), stage.layers.first, stage.layers.last) for stage in old]
    return Move(plan(of, *parts), draw(st.floats(10, 1e5)), draw(st.integers(1, 8)))


def device_of(stage: Stage, home: Cluster) -> DeviceProfile:
    return next((one for one in home.devices if one.device == stage.lead), device(9))


def subset_of(stages: tuple[Stage, ...]) -> Subset:
    return frozenset(stage.lead for stage in stages)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_search_equals_brute_force(data: st.DataObject) -> None:
    home, of = data.draw(homes()), data.draw(models())
    move = data.draw(moves(home, of))
    capacity = Capacity(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 10)))

    def cost_s(stages: tuple[Stage, ...]) -> float:
        load = moved_bytes(move.old, stages, of) * move.cost_s_per_byte if move else 0.0
        return objective_s(predict(stages, home, of, capacity), Request()) + load

    least: dict[Subset, float] = {}
    for stages in all_placements(home, len(of.layers)):
        if fits(predict(stages, home, of, capacity), home):
            subset = subset_of(stages)
            least[subset] = min(least.get(subset, inf), cost_s(stages))
    found = fastest_placements(home, of, capacity, move)
    assert found.keys() == least.keys()
    for subset, stages in found.items():
        assert subset_of(stages) == subset
        assert fits(predict(stages, home, of, capacity), home)
        # The even fill may cost a microsecond a device, and nothing more.
        assert cost_s(stages) <= least[subset] + len(stages) * EVEN_FILL_S + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_least_shortage_equals_brute_force(data: st.DataObject) -> None:
    home, of = data.draw(homes()), data.draw(models())

    def short(stages: tuple[Stage, ...]) -> int:
        return sum(shortages(stages, home, of, ONE).values())

    least: dict[Subset, int] = {}
    for stages in all_placements(home, len(of.layers)):
        if objective_s(predict(stages, home, of, ONE), Request()) < inf:
            subset = subset_of(stages)
            least[subset] = min(least.get(subset, short(stages)), short(stages))
    found = nearest_placements(home, of, ONE)
    assert {subset: short(stages) for subset, stages in found.items()} == least


@settings(max_examples=100, deadline=None)
@given(homes(), models())
def test_every_layer_is_covered_once_and_in_order(home: Cluster, of: ModelProfile) -> None:
    for stages in fastest_placements(home, of, ONE).values():
        covered = [index for stage in stages for index in range(*bounds(stage))]
        assert covered == list(range(len(of.layers)))
        assert all(len(stage.layers) > 0 for stage in stages)
        assert len({stage.lead for stage in stages}) == len(stages)


def bounds(stage: Stage) -> tuple[int, int]:
    return stage.layers.first, stage.layers.last


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_devices_share_evenly(count: int) -> None:
    devices = [device(number, memory_bytes=2000 * MB) for number in range(count)]
    even = model(layers=12, head_bytes=0)
    stages = fastest_placements(lan(*devices), even, ONE)[frozenset(peer(n) for n in range(count))]
    assert [len(stage.layers) for stage in stages] == [12 // count] * count


def test_the_device_with_the_head_gets_fewer_layers() -> None:
    devices = [device(0), device(1)]
    of = model(layers=6, weight_bytes=10 * MB, head_bytes=20 * MB, kv_bytes=0)
    stages = fastest_placements(lan(*devices), of, ONE)[frozenset({peer(0), peer(1)})]
    assert [len(stage.layers) for stage in stages] == [4, 2]


def test_memory_forces_the_cut() -> None:
    fast, slow = device(0, memory_bytes=30 * MB), device(1, layer_s=1.0, memory_bytes=60 * MB)
    of = model(layers=6, weight_bytes=10 * MB, head_bytes=20 * MB, kv_bytes=0)
    (stages,) = [stages for subset, stages in fastest_placements(lan(fast, slow), of, ONE).items()]
    assert stages == pipeline((fast, 0, 3), (slow, 3, 6))


def test_the_head_goes_where_it_is_fast() -> None:
    devices = [device(0, head_s=1e-3), device(1, head_s=1.0)]
    stages = fastest_placements(lan(*devices), model(), ONE)[frozenset({peer(0), peer(1)})]
    assert stages[-1].lead == peer(0)


def test_the_order_follows_the_fast_links() -> None:
    """A ring 0 -> 2 -> 1 -> 0 of fast links; all others are slow."""
    devices = tuple(device(number) for number in range(3))
    fast = {(0, 2), (2, 1), (1, 0)}
    links = tuple(
        LinkProfile(peer(a), peer(b), 1e-3 if (a, b) in fast else 1e-1, 1e7)
        for a, b in permutations(range(3), 2)
    )
    home = Cluster(devices, links)
    stages = fastest_placements(home, model(), ONE)[frozenset(peer(n) for n in range(3))]
    path = [int(stage.lead[:4], 16) for stage in stages]
    assert path in ([0, 2, 1], [2, 1, 0], [1, 0, 2])


def test_more_devices_than_layers_is_no_placement() -> None:
    devices = [device(number) for number in range(3)]
    assert max(map(len, fastest_placements(lan(*devices), model(layers=2), ONE))) == 2


def test_nobody_here_is_no_placement() -> None:
    assert fastest_placements(Cluster((), ()), model(), ONE) == {}


def test_the_order_of_the_answers_does_not_matter() -> None:
    devices = [device(number) for number in range(4)]
    forward, backward = lan(*devices), lan(*reversed(devices))
    assert fastest_placements(forward, model(), ONE) == fastest_placements(backward, model(), ONE)


def test_what_is_held_stays_where_it_is() -> None:
    """Equal devices: without loading any cut is as good, with it only the old one is."""
    devices = [device(0), device(1)]
    old: Plan = plan(model(), (devices[1], 0, 1), (devices[0], 1, 6))
    for requests in (1, 8):
        move = Move(old, 1e9, requests)
        stages = fastest_placements(lan(*devices), model(), ONE, move)
        assert stages[frozenset({peer(0), peer(1)})] == old.stages


def test_the_head_is_loaded_once() -> None:
    """Giving the end away loads 30 MB, giving the beginning away 45 MB."""
    layers = tuple(LayerProfile(weight_mb * MB, 0, None) for weight_mb in (45, 10))
    of = replace(model(head_bytes=20 * MB), layers=layers)
    devices = [device(0), device(1)]
    move = Move(plan(of, (devices[0], 0, 2)), 1e6, 1)
    stages = fastest_placements(lan(*devices), of, ONE, move)[frozenset({peer(0), peer(1)})]
    assert stages == pipeline((devices[0], 0, 1), (devices[1], 1, 2))


def test_eight_devices_and_32_layers_are_planned_within_a_second() -> None:
    devices = [
        device(number, layer_s=1e-3 * (1 + number), memory_bytes=2000 * MB) for number in range(8)
    ]
    of = model(layers=32, weight_bytes=30 * MB, head_bytes=100 * MB)
    started_s = time.perf_counter()
    found = fastest_placements(lan(*devices), of, ONE)
    assert time.perf_counter() - started_s < 1.0  # 0.04 s on two cores of a server
    assert len(found) == 2**8 - 1
