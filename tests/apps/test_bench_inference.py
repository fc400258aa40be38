"""What the benchmark of several devices decides without measuring anything."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.bench import cgroups
from apps.bench.cgroups import Group
from apps.bench.home import Environment
from apps.bench.inference import Asked, bound_of
from apps.bench.inference_goals import Figures, goals_of
from apps.bench.measuring import difference
from apps.bench.report import Goal
from apps.bench.shapes import SHAPES
from apps.bench.strategies import (
    EVEN_TP,
    GLOO,
    ONE,
    PLANNER,
    WIRE,
    WORK,
    Party,
    Sizes,
    spans,
    strategies_for,
)
from mesh.errors import ConfigError
from mesh.ids import PeerId
from planner.plan import ROW_UNITS, Share, Span, Split
from runtime.checkpoints import open_model
from runtime.compute.precision import Precision

SIZES = Sizes(layers=4, heads=16, columns=4096)


def party(*speeds: float) -> Party:
    return Party(tuple(PeerId(f"{number:064x}") for number in range(len(speeds))), speeds)


# --- homes ----------------------------------------------------------------------------------------


def test_a_home_is_said_in_a_few_letters() -> None:
    assert Environment.parse("4x0.25@125") == Environment("4x0.25@125", (0.25,) * 4, 125)
    assert Environment.parse("0.125+0.5@1000").cores == (0.5, 0.125)  # the strongest first
    assert Environment.parse("2x1").mbit is None


@pytest.mark.parametrize("text", ["", "1", "2x0", "9x0.5@125", "2x2@125", "two@125", "2x1@fast"])
def test_what_is_no_home_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="4x0.25@125"):
        Environment.parse(text)


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bert-large"):
        _ = Asked(models=("bert-huge",)).shapes


def test_control_groups_of_both_versions_take_the_same_limits(tmp_path: Path) -> None:
    first, second = tmp_path / "v1", tmp_path / "v2"
    for controller in ("cpu", "memory"):
        (first / controller).mkdir(parents=True)
        (first / controller / "cgroup.procs").write_text("")
    second.mkdir()
    (second / "cgroup.controllers").write_text("cpuset cpu io memory pids")
    for root in (first, second):
        assert cgroups.why_not(root) is None
        group = Group.make("one", root)
        group.limit_cores(0.25)
        group.limit_memory(1 << 30)
    assert (first / "cpu/one/cpu.cfs_quota_us").read_text() == "2500"
    assert (first / "cpu/one/cpu.cfs_period_us").read_text() == "10000"
    assert (first / "memory/one/memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (second / "one/cpu.max").read_text() == "2500 10000"
    assert (second / "one/memory.max").read_text() == str(1 << 30)
    assert (second / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_a_machine_without_control_groups_says_so(tmp_path: Path) -> None:
    assert "no control groups" in (cgroups.why_not(tmp_path) or "")


# --- strategies -----------------------------------------------------------------------------------


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=8), st.integers(8, 5000))
def test_spans_are_one_behind_the_other_and_none_is_empty(weights: list[float], total: int) -> None:
    found = spans(total, weights)
    assert [found[0].first, found[-1].last] == [0, total]
    assert all(len(one) for one in found)
    assert all(one.last == two.first for one, two in pairwise(found))
    if total > 100 * len(weights):
        assert all(
            abs(len(one) - total * weight / sum(weights)) <= 1
            for one, weight in zip(found, weights, strict=True)
        )


@given(st.lists(st.sampled_from([1.0, 0.5, 0.25, 0.125]), min_size=2, max_size=4))
def test_the_shares_of_every_strategy_add_up(speeds: list[float]) -> None:
    home = party(*sorted(speeds, reverse=True))
    for strategy in strategies_for(home):
        stages = strategy.stages(SIZES, home)
        assert sum(len(stage.layers) for stage in stages) == SIZES.layers
        for stage in stages:
            assert stage.lead == stage.shares[0].device
            for cut, whole in (("heads", 16), ("columns", 4096), ("rows", ROW_UNITS)):
                parts = [getattr(share, cut) for share in stage.shares]
                if parts[0] is not None:
                    _check_whole(parts, whole)


def _check_whole(parts: list[Span], whole: int) -> None:
    ordered = sorted(parts, key=lambda part: part.first)
    assert (ordered[0].first, ordered[-1].last) == (0, whole)
    assert all(one.last == two.first for one, two in pairwise(ordered))


def test_with_sequence_parallelism_the_lead_has_the_last_rows() -> None:
    home = party(0.5, 0.25, 0.25)
    for strategy in strategies_for(home):
        if strategy.split is Split.SEQUENCE:
            (stage,) = strategy.stages(SIZES, home)
            assert stage.shares[0].rows is not None
            assert stage.shares[0].rows.last == ROW_UNITS
            assert all(share.heads is None for share in stage.shares)


def test_equal_devices_are_not_measured_twice() -> None:
    names = [strategy.name for strategy in strategies_for(party(0.25, 0.25))]
    assert len(names) == len(set(names))
    assert not any("by speed" in name for name in names)
    uneven = party(0.5, 0.125)
    assert bound_of(strategies_for(uneven), uneven).name == "hybrid by speed fp16"


def test_a_pipeline_has_no_more_stages_than_there_are_layers() -> None:
    home = party(0.25, 0.25, 0.25, 0.25)
    pipeline = next(one for one in strategies_for(home) if one.name == "pipeline")
    stages = pipeline.stages(Sizes(2, 16, 4096), home)
    assert [stage.shares for stage in stages] == [
        (Share(home.devices[0]),),
        (Share(home.devices[1]),),
    ]


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_made_model_opens_as_what_it_is_named_after(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    model = open_model(shape.write(tmp_path, 1), Precision.FP32)
    profile = model.profile()
    assert profile.hidden_size == shape.hidden
    assert len(profile.layers) == 1
    weights = 4 * (4 * shape.hidden**2 + 2 * shape.hidden * shape.ffn)
    assert weights < profile.layers[0].weight_bytes < 1.1 * weights
    for parameter in _layer(model.load_layer(0)).parameters():
        assert torch.isfinite(parameter).all()
        assert parameter.abs().max() < 2  # what a pass makes of it stays in the range of numbers


def _layer(loaded: object) -> torch.nn.Module:
    layer = getattr(loaded, "layer", loaded)
    assert isinstance(layer, torch.nn.Module)
    return layer


# --- goals ----------------------------------------------------------------------------------------


def figures(home: str, **seconds: float) -> Figures:
    names = {"one": ONE, "gloo": GLOO, "plan": PLANNER, "work": WORK, "wire": WIRE, "tp": EVEN_TP}
    return Figures(
        Environment.parse(home),
        "bert-large, 4 of 24",
        {names.get(key, key): [value] * 5 for key, value in seconds.items()},
        {},
    )


def goal(goals: list[Goal], text: str) -> Goal:
    (found,) = [one for one in goals if text in one.goal]
    return found


def test_what_the_planner_chooses_is_held_against_the_fastest_other() -> None:
    found = goals_of([figures("2x0.25@125", one=1.0, hybrid=0.6, gloo=0.9, plan=0.61)])
    assert goal(found, "fastest other").met
    found = goals_of([figures("2x0.25@125", one=1.0, hybrid=0.6, plan=0.7)])
    assert not goal(found, "fastest other").met


def test_bounds_are_no_rivals() -> None:
    found = goals_of([figures("2x0.25@125", one=1.0, plan=0.6, work=0.5, wire=0.3)])
    assert goal(found, "fastest other").met
    assert goal(found, "alone").measured == pytest.approx(1.2)
    assert goal(found, "alone").met


def test_four_equal_devices_are_held_against_one_and_against_gloo() -> None:
    found = goals_of([figures("4x0.25@125", one=1.0, gloo=0.8, hybrid=0.42)])
    assert goal(found, ONE).measured == pytest.approx(1 / 0.42)
    assert goal(found, ONE).met
    assert goal(found, GLOO).measured == pytest.approx(0.8 / 0.42)
    assert goal(found, GLOO).met
    assert not goal(goals_of([figures("4x0.25@1000", one=1.0, hybrid=0.42)]), ONE).met


def test_uneven_devices_are_held_against_an_even_split() -> None:
    found = goals_of([figures("0.5+0.125@125", one=1.0, tp=2.7, plan=1.0)])
    assert goal(found, EVEN_TP).met
    assert not [one for one in found if "alone" in one.goal]


def test_homes_that_were_not_measured_have_no_goals() -> None:
    assert goals_of([]) == []
    assert goals_of([figures("3x0.25@125", one=1.0)]) == []


def test_errors_are_told_by_wire() -> None:
    one = Figures(
        Environment.parse("2x1"),
        "distilbert",
        {},
        {"hybrid even fp16": 2e-3, "hybrid even fp32": 5e-4, GLOO: 1.0},
    )
    found = goals_of([one])
    assert goal(found, "fp16").met
    assert not goal(found, "fp32").met


def test_answers_of_another_length_say_nothing() -> None:
    assert difference([1.0, 2.0], []) is None
    assert difference([1.0], [1.0, 2.0]) is None
    assert difference([1.0, 2.5], [1.0, 2.0]) == pytest.approx(0.25)
