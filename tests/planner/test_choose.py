"""The choice and its reason: a table of homes, and what must hold in every home."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import DoesNotFit, PlanError
from planner.candidate import MIN_CONTEXT, capacity_steps
from planner.choose import MAX_SEARCHED_DEVICES, Choice, choose
from planner.cost import fits, objective_s
from planner.plan import Capacity, Job
from planner.profile import Cluster, Curve, DeviceProfile, LinkProfile, ModelProfile
from planner.request import Request
from tests.planner.homes import EPOCH, MB, PLAN, device, gemma, lan, model, peer

ONE = Capacity(1, 2048)
FOUR = Capacity(4, 32_768)


def chosen(home: Cluster, of: ModelProfile, wanted: Capacity = ONE) -> Choice:
    return choose(home, of, wanted, EPOCH, PLAN)


def sizes(choice: Choice) -> list[int]:
    return [len(stage.layers) for stage in choice.plan.stages]


# --- capacity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ((4, 8192), [(4, 8192), (2, 8192), (1, 8192), (1, 4096), (1, 2048)]),
        ((3, 3000), [(3, 3000), (1, 3000), (1, 2048)]),
        ((2, 500), [(2, 500), (1, 500)]),
        ((1, 99_999), [(1, 8192), (1, 4096), (1, 2048)]),  # the model's own maximum
    ],
)
def test_what_is_tried_when_it_does_not_all_fit(
    wanted: tuple[int, int], steps: list[tuple[int, int]]
) -> None:
    found = capacity_steps(Capacity(*wanted), model(context=8192))
    assert [(step.sessions, step.context) for step in found] == steps
    assert found[-1].context <= MIN_CONTEXT


def test_a_model_with_a_short_context_has_a_lower_floor() -> None:
    assert capacity_steps(Capacity(1, 4096), model(context=1024)) == (Capacity(1, 1024),)


def gemma_home(memory_bytes: int) -> Cluster:
    """Three devices alike, 100 Mbit/s, 2 ms; each needs 20 MB of scratch."""
    devices = [
        device(number, memory_bytes, layer_s=1e-3, head_s=20e-3, scratch_bytes=20 * MB)
        for number in range(3)
    ]
    return lan(*devices)


# Layer 17 has a full cache (268 MB for four conversations) and stays with the head of 671 MB: a
# last device needs 982 MB. From 1048 MB on, two devices hold all four.
@pytest.mark.parametrize("memory_mb", [982, 1000, 1047])
def test_three_devices_hold_what_two_cannot(memory_mb: int) -> None:
    choice = chosen(gemma_home(memory_mb * MB), gemma(), FOUR)
    assert (len(choice.plan.stages), choice.plan.capacity) == (3, FOUR)
    held = {len(row.devices): row.capacity for row in choice.candidates}
    assert held == {1: None, 2: Capacity(2, 32_768), 3: FOUR}
    assert choice.plan.reason.startswith(
        "3 devices: no single device can hold 1.14 GB (the largest allows "
    )
    assert "2 devices hold only 2 of the 4 conversations asked for" in choice.plan.reason
    assert "prefill of 512 tokens" in choice.plan.reason


@pytest.mark.parametrize(
    ("memory_mb", "stages", "capacity"),
    [
        (716, None, None),
        (718, 2, Capacity(1, 2048)),  # the last layer, its cache, the head and scratch: 717.7 MB
        (760, 2, Capacity(1, 16_384)),
        (981, 2, Capacity(2, 32_768)),
        (982, 3, FOUR),
        (1047, 3, FOUR),
        (1048, 2, FOUR),
        (1160, 2, FOUR),  # one device holds the model, but not the conversations
        (2054, 2, FOUR),
        (2055, 1, FOUR),
    ],
)
def test_gemma_on_three_devices_alike(
    memory_mb: int, stages: int | None, capacity: Capacity | None
) -> None:
    home = gemma_home(memory_mb * MB)
    if stages is None:
        with pytest.raises(DoesNotFit, match="short by"):
            chosen(home, gemma(), FOUR)
        return
    plan = chosen(home, gemma(), FOUR).plan
    assert (len(plan.stages), plan.capacity) == (stages, capacity)
    assert ("asked for" in plan.reason.split("per token.")[-1]) is (capacity != FOUR)


def test_a_reduced_capacity_says_what_is_missing_and_where() -> None:
    reason = chosen(gemma_home(960 * MB), gemma(), FOUR).plan.reason
    assert reason.endswith(
        "It holds only 2 of the 4 conversations asked for; all would need another 22 MB on desktop."
    )


# --- one device or several -----------------------------------------------------------------------


def test_one_fast_device_beats_every_pipeline() -> None:
    choice = chosen(lan(device(0), device(1), device(2)), model())
    assert sizes(choice) == [6]
    assert choice.plan.reason.startswith("One device: laptop holds the whole model and takes ")
    assert "laptop and desktop together would take" in choice.plan.reason
    assert "on the network" in choice.plan.reason


def test_alone_at_home() -> None:
    choice = chosen(lan(device(0)), model())
    assert "laptop is the only one that can take part" in choice.plan.reason
    assert len(choice.candidates) == 1


def test_devices_that_cannot_reach_each_other_work_alone() -> None:
    home = Cluster((device(0), device(1)), ())
    choice = chosen(home, model())
    assert sizes(choice) == [6]
    assert "no chain of measured links" in choice.candidates[-1].reason


def test_a_slow_device_is_left_out() -> None:
    small = 80 * MB
    home = lan(device(0, small), device(1, small), device(2, small, layer_s=0.5))
    choice = chosen(home, model())  # 82 MB with its caches: two are needed
    assert set(choice.plan.devices) == {peer(0), peer(1)}


def test_two_fast_halves_beat_one_slow_whole() -> None:
    small = 80 * MB
    home = lan(device(0, small), device(1, small), device(2, layer_s=0.5))
    choice = chosen(home, model())
    assert set(choice.plan.devices) == {peer(0), peer(1)}
    assert "a single device would take" in choice.plan.reason


def test_equal_devices_share_evenly_when_one_is_too_small() -> None:
    small = 50 * MB
    of = model(layers=8, head_bytes=0, kv_bytes=0)
    assert sizes(chosen(lan(device(0, small), device(1, small)), of)) == [4, 4]


def test_among_equals_the_fewest_then_the_first_by_id() -> None:
    home = lan(*(device(number) for number in (3, 1, 2)))
    assert chosen(home, model()).plan.devices == (peer(1),)
    small = lan(*(device(number, memory_bytes=80 * MB) for number in (3, 1, 2)))
    assert chosen(small, model()).plan.devices == (peer(1), peer(2))


# --- candidates and refusals ---------------------------------------------------------------------


def test_every_set_of_devices_has_a_row_and_a_reason() -> None:
    choice = chosen(gemma_home(1000 * MB), gemma(), FOUR)
    assert len({frozenset(row.devices) for row in choice.candidates}) == 7
    assert all(row.reason for row in choice.candidates)
    first = choice.candidates[0]
    assert (first.stages, first.reason) == (choice.plan.stages, choice.plan.reason)
    refused = [row for row in choice.candidates if row.prediction is None]
    assert refused[0].reason == "needs 1.14 GB, it allows 1 GB: short by 145 MB on laptop"


def test_a_refused_pair_says_which_memory_is_short() -> None:
    home = lan(device(0, 30 * MB), device(1, 40 * MB), device(2))
    choice = chosen(home, model(kv_bytes=0))  # 80 MB
    pair = next(row for row in choice.candidates if set(row.devices) == {peer(0), peer(1)})
    assert pair.reason.startswith("needs 80 MB, the 2 allow 70 MB: short by 10 MB on ")


def test_what_does_not_fit_says_what_to_do() -> None:
    home = lan(device(0, 30 * MB), device(1, 30 * MB))
    with pytest.raises(DoesNotFit) as caught:
        choose(home, model(kv_bytes=0), ONE, EPOCH, PLAN, absent={peer(5): "has no model file"})
    text = str(caught.value)
    assert "toy does not fit: even for 1 conversation of 2048 tokens" in text
    assert "needs 80 MB, the 2 allow 60 MB: short by 20 MB on" in text
    assert "--memory" in text
    assert f"{peer(5).short}: has no model file" in text


def test_an_empty_home_does_not_fit() -> None:
    with pytest.raises(DoesNotFit, match="No device here can take part in running toy"):
        chosen(Cluster((), ()), model())


def test_layers_cannot_be_divided() -> None:
    """Together there is room, but the head goes whole to one of them."""
    home = lan(device(0, 60 * MB), device(1, 60 * MB))
    with pytest.raises(DoesNotFit, match="neither a layer nor the head can be divided"):
        chosen(home, model(layers=2, head_bytes=80 * MB, kv_bytes=0))


def test_absent_devices_are_listed_with_their_reason() -> None:
    choice = choose(
        lan(device(0)), model(), ONE, EPOCH, PLAN, absent={peer(7): "does not hold the model"}
    )
    last = choice.candidates[-1]
    assert (last.devices, last.prediction) == ((peer(7),), None)
    assert last.reason == "does not hold the model"


@pytest.mark.parametrize(
    "broken",
    [
        replace(device(1), layer=Curve(())),
        replace(device(1), layer=Curve(((0, 1.0),))),
        replace(device(1), layer=Curve(((1, float("nan")), (512, 1.0)))),
        replace(device(1), head_s=float("inf")),
        replace(device(1), head_s=-1.0),
        replace(device(1), scratch_bytes=-(10**12)),
    ],
)
def test_a_device_with_a_nonsense_profile_is_left_out(broken: DeviceProfile) -> None:
    choice = chosen(lan(device(0), broken), model())
    assert choice.plan.devices == (peer(0),)
    assert choice.candidates[-1].reason == "its profile has a number that cannot be"


@pytest.mark.parametrize(
    ("wanted", "of"),
    [
        (Capacity(0, 100), model()),
        (Capacity(1, 0), model()),
        (ONE, replace(model(), layers=())),
    ],
)
def test_a_request_without_sense_is_refused(wanted: Capacity, of: ModelProfile) -> None:
    with pytest.raises(PlanError, match="expected a model with layers"):
        chosen(lan(device(0)), of, wanted)


def test_a_crowd_is_searched_by_its_fastest_and_largest() -> None:
    crowd = [device(number, 40 * MB, layer_s=1.0) for number in range(14)]
    crowd[11] = device(11, 45 * MB, layer_s=1e-3)
    crowd[13] = device(13, 90 * MB, layer_s=1e-2)
    choice = chosen(lan(*crowd), model(kv_bytes=0))
    assert {peer(11), peer(13)} == set(choice.plan.devices)
    others = [row for row in choice.candidates if "the search takes" in row.reason]
    assert len(others) == 14 - MAX_SEARCHED_DEVICES


def test_the_plan_carries_what_it_was_asked() -> None:
    plan = chosen(lan(device(0)), model(), Capacity(2, 1_000_000)).plan
    assert (plan.epoch, plan.plan_id, plan.job) == (EPOCH, PLAN, Job.RUN)
    assert (plan.model, plan.model_name) == (model().model, "toy")
    assert plan.capacity == Capacity(2, 8192)  # the model's own maximum


# --- in every home -------------------------------------------------------------------------------


@st.composite
def homes(draw: st.DrawFn) -> Cluster:
    devices = [
        device(
            number,
            memory_bytes=draw(st.integers(5, 120)) * MB,
            layer_s=draw(st.sampled_from((1e-3, 2e-3, 1e-2))),
            head_s=draw(st.sampled_from((1e-3, 5e-2))),
        )
        for number in range(draw(st.integers(1, 4)))
    ]
    links = tuple(
        LinkProfile(peer(a), peer(b), draw(st.sampled_from((1e-3, 5e-2))), 12.5e6)
        for a, b in permutations(range(len(devices)), 2)
    )
    return Cluster(tuple(devices), links)


WANTED = st.builds(Capacity, st.integers(1, 4), st.sampled_from((500, 4096, 8192)))


def plan_or_none(home: Cluster, wanted: Capacity) -> Choice | None:
    try:
        return chosen(home, model(), wanted)
    except DoesNotFit:
        return None


@settings(max_examples=60, deadline=None)
@given(homes(), WANTED)
def test_a_plan_fits_or_the_refusal_is_in_words(home: Cluster, wanted: Capacity) -> None:
    choice = plan_or_none(home, wanted)
    if choice is None:
        assert sum(one.memory_bytes for one in home.devices) < 200 * MB
        return
    plan = choice.plan
    assert fits(plan.predicted, home)
    assert plan.capacity in capacity_steps(wanted, model())
    assert [stage.layers.first for stage in plan.stages][0] == 0
    assert plan.stages[-1].layers.last == 6
    for row in choice.candidates[1:]:
        assert row.reason
        if row.capacity == plan.capacity and row.prediction:
            chosen_s = objective_s(plan.predicted, Request())
            assert objective_s(row.prediction, Request()) >= chosen_s - 1e-5


@settings(max_examples=60, deadline=None)
@given(homes(), WANTED)
def test_the_same_home_gets_the_same_plan(home: Cluster, wanted: Capacity) -> None:
    shuffled = Cluster(home.devices[::-1], home.links[::-1])
    one, other = plan_or_none(home, wanted), plan_or_none(shuffled, wanted)
    assert (one and (one.plan, one.candidates)) == (other and (other.plan, other.candidates))


@settings(max_examples=60, deadline=None)
@given(homes(), WANTED, st.integers(0, 3), st.integers(1, 60))
def test_more_memory_never_makes_it_worse(
    home: Cluster, wanted: Capacity, which: int, more_mb: int
) -> None:
    devices = list(home.devices)
    index = which % len(devices)
    more_bytes = devices[index].memory_bytes + more_mb * MB
    devices[index] = replace(devices[index], memory_bytes=more_bytes)
    before, after = (
        plan_or_none(home, wanted),
        plan_or_none(replace(home, devices=tuple(devices)), wanted),
    )
    if before is None:
        return
    assert after is not None
    steps = capacity_steps(wanted, model())
    old_step, new_step = (steps.index(choice.plan.capacity) for choice in (before, after))
    assert new_step <= old_step
    if new_step == old_step:
        # A microsecond a device may go to filling them evenly.
        assert objective_s(after.plan.predicted, Request()) <= (
            objective_s(before.plan.predicted, Request()) + 1e-5
        )
