"""What the benchmark of several devices decides without measuring anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apps.bench import cases, cgroups
from apps.bench.cases import Cases, bound_of, shapes_of
from apps.bench.cgroups import Group
from apps.bench.choosing import (
    NO_LIMIT_BYTES,
    Wanted,
    chosen,
    in_words,
    surveyed,
    why_impossible,
)
from apps.bench.home import MB, Environment
from apps.bench.inference import rows_of
from apps.bench.inference_goals import Figures, goals_of
from apps.bench.measuring import Passes, alike, difference
from apps.bench.passes import Done, Model
from apps.bench.physical import IdleLayer
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
    cut,
    one_device,
    strategies_for,
)
from apps.planning.profiles import SCRATCH_BYTES, described
from mesh.codec import to_plain
from mesh.errors import ConfigError, ModelNotFound
from mesh.ids import PeerId
from mesh.net.probe import LinkMeasure
from planner.memory import held_bytes
from planner.plan import ROW_UNITS, Capacity, Prediction, Share, Span, Split, Wire
from planner.profile import Curve
from planner.request import Request
from runtime.checkpoints import open_model
from runtime.compute.precision import Precision
from runtime.measured import Measured
from runtime.walks.hybrid import Hybrid
from tests.runtime.plain import plain
from tests.runtime.walks.together import exchanges, together

SIZES = Sizes(layers=4, heads=16, columns=4096)


def party(*speeds: float) -> Party:
    return Party(tuple(PeerId(f"{number:064x}") for number in range(len(speeds))), speeds)


# --- homes ----------------------------------------------------------------------------------------


def test_a_home_is_said_in_a_few_letters() -> None:
    assert Environment.parse("4x0.25@125") == Environment("4x0.25@125", (0.25,) * 4, 125)
    assert Environment.parse("0.125+0.5@1000").cores == (0.5, 0.125)  # the strongest first
    assert Environment.parse("2x1").mbit is None
    limited = Environment.parse("0.25:450MB+0.5:600MB@125")
    assert (limited.cores, limited.memory_bytes) == ((0.5, 0.25), (600 * MB, 450 * MB))
    assert limited.model_bytes == (400 * MB, 250 * MB)
    assert Environment.parse("2x0.25:450MB").memory_bytes == (450 * MB,) * 2
    assert not Environment.parse("2x1").model_bytes


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "2x0", "9x0.5@125", "2x2@125", "two@125", "2x1@fast"),
        *("2x1:450", "2x1:much", "2x1:10MB", "1:450MB+1", "2x1:-450MB"),
    ],
)
def test_what_is_no_home_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="4x0.25@125"):
        Environment.parse(text)


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="bert-large"):
        shapes_of(("bert-huge",))


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
    found = cut(total, weights)
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
            for part, whole in (("heads", 16), ("columns", 4096), ("rows", ROW_UNITS)):
                parts = [getattr(share, part) for share in stage.shares]
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


def test_behind_the_first_home_exact_wires_are_left_to_megatron() -> None:
    home = party(0.5, 0.125)
    first, other = (strategies_for(home, exact=exact) for exact in (True, False))
    names = {one.name for one in other}
    assert names < {one.name for one in first}
    assert {one.name for one in first} - names == {
        f"{split} {how} fp32" for split in ("sequence", "hybrid") for how in ("even", "by speed")
    }
    assert {EVEN_TP, ONE, "sequence by speed int8", "hybrid even int8"} <= names


def test_a_pipeline_has_no_more_stages_than_there_are_layers() -> None:
    home = party(0.25, 0.25, 0.25, 0.25)
    pipeline = next(one for one in strategies_for(home) if one.name == "pipeline")
    stages = pipeline.stages(Sizes(2, 16, 4096), home)
    assert [stage.shares for stage in stages] == [
        (Share(home.devices[0]),),
        (Share(home.devices[1]),),
    ]


# --- what the planner would do --------------------------------------------------------------------


class Told:
    """A device that says what it measured, as the processes of a home do."""

    def __init__(
        self, index: int, others: Sequence[int], layer_s: float, memory_bytes: int = 1 << 40
    ) -> None:
        self.name = f"device {index}"
        self.asked: dict[str, Any] = {}
        links = {peer_of(other): LinkMeasure(1e-4, 1e8, 1e-6, 1e-10) for other in others}
        measured = Measured(Curve(((1, layer_s / 284), (284, layer_s))), 0.001)
        self._told = described(peer_of(index), self.name, memory_bytes, measured, links)

    async def ask(self, do: str, **fields: Any) -> Any:
        self.asked = {"do": do, **fields}
        profile, links = self._told
        return {"profile": to_plain(profile), "links": [to_plain(link) for link in links]}


def peer_of(number: int) -> PeerId:
    return PeerId(f"{number:064x}")


def made(tmp_path: Path) -> Model:
    path = SHAPES["distilbert"].write(tmp_path, 2)
    profile = open_model(path, Precision.FP32).profile()
    return Model("distilbert", path, profile, Sizes(2, 12, 3072), 284, 512)


async def test_what_fits_no_device_is_impossible_on_one_and_runs_on_two(tmp_path: Path) -> None:
    model = made(tmp_path)
    whole = held_bytes(model.profile, Span(0, 2), Capacity(1, model.context))
    limit = whole * 3 // 4 + SCRATCH_BYTES
    devices = [Told(0, [1], 0.2, limit), Told(1, [0], 0.1, limit)]
    cluster = await surveyed(devices, model, [limit] * 2)  # type: ignore[arg-type]
    choice = chosen(cluster, model, Wanted(Request(284, 0), Wire.FP16))
    assert len(choice.plan.devices) == 2
    assert why_impossible(choice, model, choice.plan.stages) == ""
    home = Party((peer_of(0), peer_of(1)), (1.0, 1.0))
    alone = one_device().stages(model.sizes, home)
    assert why_impossible(choice, model, alone).startswith("impossible: short by ")


async def test_the_planner_sees_the_devices_as_they_measured_themselves(tmp_path: Path) -> None:
    model = made(tmp_path)
    devices = [Told(0, [1], 0.2), Told(1, [0], 0.1)]
    cluster = await surveyed(devices, model, [1 << 30])  # type: ignore[arg-type]
    assert [device.asked["memory_bytes"] for device in devices] == [1 << 30, NO_LIMIT_BYTES]
    assert [one.layer.at(284) for one in cluster.devices] == [0.2, 0.1]
    assert {(one.source, one.target) for one in cluster.links} == {
        (peer_of(0), peer_of(1)),
        (peer_of(1), peer_of(0)),
    }


async def test_of_devices_that_cannot_share_a_layer_the_faster_one_is_chosen(
    tmp_path: Path,
) -> None:
    model = made(tmp_path)
    devices = [Told(0, [1], 0.2), Told(1, [0], 0.1)]
    choice = chosen(
        await surveyed(devices, model),  # type: ignore[arg-type]
        model,
        Wanted(Request(284, 0), Wire.FP16),
    )
    assert choice.plan.devices == (peer_of(1),)
    assert choice.plan.predicted.prefill_s == pytest.approx(2 * 0.1, rel=0.1)
    assert in_words(choice) == "all layers on device 1"


@pytest.mark.parametrize("wire", list(Wire))
def test_the_planner_takes_no_narrower_wire_than_wanted(wire: Wire) -> None:
    widest_first = [Wire.FP32, Wire.FP16, Wire.INT8]
    allowed = Wanted(Request(284, 0), wire).allowed
    assert allowed.wires == set(widest_first[: widest_first.index(wire) + 1])
    assert allowed.head
    assert allowed.strategies == set(Split)


def test_the_answering_model_is_measured_in_one_home_and_its_rival_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_answering", lambda: made(tmp_path))
    found = Cases([cases.ANSWERING], tmp_path)
    assert any("rpc-server" in text for text in found.skipped)
    home = party(1.0, 1.0)
    assert not found.of(Environment.parse("2x1"), home, is_first=True)
    (case,) = found.of(Environment.parse(cases.ANSWERS_IN), home, is_first=False)
    assert [one.name for one in case.strategies] == [ONE]
    assert case.wanted.allowed.wires == {Wire.FP32}  # its text is to be that of one device


def test_without_its_package_the_answering_model_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Model:
        raise ModelNotFound("the default model needs a package")

    monkeypatch.setattr(cases, "_answering", missing)
    found = Cases([cases.ANSWERING], tmp_path)
    assert any("needs a package" in text for text in found.skipped)
    home = party(1.0, 1.0)
    assert not found.of(Environment.parse(cases.ANSWERS_IN), home, is_first=True)


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
        numbers = plain(parameter)
        assert torch.isfinite(numbers).all()
        assert numbers.abs().max() < 2  # what a pass makes of it stays in the range of numbers


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


def test_the_wire_alone_stays_as_narrow_as_was_asked() -> None:
    """Four devices' sums once outgrew fp16, and the wire alone took longer than whole passes."""
    units = [Span(ROW_UNITS * i // 4, ROW_UNITS * (i + 1) // 4) for i in range(4)]
    layers = [IdleLayer() for _ in range(12)]
    hidden = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    ends = exchanges(4, Wire.FP16)
    walks = [Hybrid(one, units, tiles=2) for one in ends]
    together([lambda walk=walk: walk.run(layers, hidden, [None] * 12) for walk in walks])
    assert [one.wires for one in ends] == [[Wire.FP16] * 4] * 4


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


def test_a_prediction_is_held_against_what_was_measured() -> None:
    one = replace(figures("2x0.25@125", one=1.0, plan=0.6), predicted=Prediction(0.5, 0.0, 0, ()))
    found = goal(goals_of([one]), "prediction off by")
    assert found.measured == pytest.approx(1 / 6)
    assert not found.met


def test_what_the_planner_was_not_allowed_is_no_rival() -> None:
    seconds = {"one": 1.0, "hybrid even int8": 0.5, "hybrid even fp16": 0.62, "plan": 0.6}
    found = goal(goals_of([figures("2x0.25@125", **seconds)]), "fastest other")
    assert found.measured == pytest.approx(0.62 / 0.6)


def test_an_answer_is_held_against_that_of_one_device() -> None:
    one = replace(
        figures("2x1@1000", one=1.0, plan=0.6),
        predicted=Prediction(0.6, 0.02, 0, ()),
        token_seconds={ONE: [0.03] * 5, PLANNER: [0.025] * 5},
        alike={PLANNER: 0.5},
    )
    found = goals_of([one])
    assert goal(found, "prefill").met
    assert goal(found, "a token, times").measured == pytest.approx(1.2)
    assert not goal(found, "a token, times").met
    assert not goal(found, "prediction of a token").met
    assert not goal(found, "tokens as of").met


@pytest.mark.parametrize(
    ("answer", "part"), [([1, 2, 3, 4], 1.0), ([1, 2, 9, 4], 0.5), ([1, 2], 0.5), ([], 0.0)]
)
def test_answers_are_alike_up_to_the_first_other_token(answer: list[int], part: float) -> None:
    assert alike(answer, [1, 2, 3, 4]) == part
    assert alike(answer, []) is None


def test_rows_say_what_was_chosen_and_how_long_it_should_have_taken() -> None:
    done = [Done(0.2, answer_s=0.5, answer=(1, 2))] * 5
    words, predicted = "all layers on device 0", Prediction(0.1, 0.5, 0, ())
    one = Passes("2x1", "distilbert", PLANNER, done, words, predicted)
    told = {row.what.partition(": ")[2]: row.median for row in rows_of(one)}
    assert told[f"{PLANNER} ({words})"] == pytest.approx(200)
    assert told[f"{PLANNER}, predicted"] == pytest.approx(100)
    assert told[f"{PLANNER}, measured"] == pytest.approx(2)
    assert told[f"{PLANNER}, a token measured"] == pytest.approx(0.5)


def test_answers_of_another_length_say_nothing() -> None:
    assert difference([1.0, 2.0], []) is None
    assert difference([1.0], [1.0, 2.0]) is None
    assert difference([1.0, 2.5], [1.0, 2.0]) == pytest.approx(0.25)
