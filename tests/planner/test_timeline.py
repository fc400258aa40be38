"""Timelines: what is drawn of a plan is what it was priced by."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.allowed import EVERYTHING, Allowed
from planner.choose import choose
from planner.cost import predict, profiles
from planner.group_cost import prompt_cost, team_of
from planner.network import links_of, return_s
from planner.plan import Capacity, Plan, Share, Span, Split, Stage, Wire
from planner.profile import Cluster, ModelProfile, Stacks
from planner.request import request_of
from planner.shape_text import brief_text
from planner.timeline import Timeline, merged, timelines
from tests.planner.homes import EPOCH, MB, PLAN, at_mbit, bert, board, pipeline, plan

ONE = Capacity(1, 512)
DECODER = bert(12, Stacks.DECODER, head_bytes=40 * MB)
GROUPS = [Split.HYBRID, Split.TENSOR, Split.SEQUENCE]


def only(*splits: Split, head: bool = False) -> Allowed:
    return Allowed(frozenset(splits), chunks=True, head=head)


def chosen(home: Cluster, of: ModelProfile, allowed: Allowed = EVERYTHING) -> Plan:
    return choose(home, of, ONE, EPOCH, PLAN, allowed=allowed).plan


def check(drawn: Timeline) -> None:
    for lane in drawn.lanes:
        for runs in (lane.compute, lane.wire):
            assert all(0 <= first < last <= drawn.seconds * (1 + 1e-9) for first, last in runs)
            assert all(one[1] < next_one[0] for one, next_one in pairwise(runs))


@pytest.mark.parametrize("stacks", [Stacks.ENCODER, Stacks.DECODER])
@pytest.mark.parametrize("split", GROUPS)
def test_a_layer_takes_what_one_more_costs(split: Split, stacks: Stacks) -> None:
    home = at_mbit(125, board(0), board(1, 0.5), board(2))
    of = bert(12, stacks)
    made = chosen(home, of, only(split))
    (stage,) = made.stages
    drawn, *_ = timelines(made, home, of)
    more = replace(stage, layers=Span(0, 13))
    team = team_of(stage, profiles(home), links_of(home), of)
    assert team is not None
    before_s = prompt_cost(stage, team, of, 512).seconds
    each_s = prompt_cost(more, team, bert(13, stacks), 512).seconds - before_s
    ahead = (split, stacks) == (Split.SEQUENCE, Stacks.DECODER)  # and so another layer is drawn
    assert drawn.seconds == pytest.approx(each_s, rel=0.02 if ahead else 1e-6)
    assert [lane.device for lane in drawn.lanes] == [share.device for share in stage.shares]
    assert all(lane.compute and lane.wire for lane in drawn.lanes)


@pytest.mark.parametrize("wire", list(Wire))
def test_a_narrow_wire_is_busy_for_as_long_as_its_bytes_take(wire: Wire) -> None:
    """A device of two sends half of the rows, four times a layer."""
    home, of = at_mbit(125, board(0), board(1)), bert(12)
    halves = [Span(0, 8), Span(8, 16)], [Span(0, 2048), Span(2048, 4096)]
    shares = tuple(
        Share(one.device, heads, columns, rows=Span(512 * n, 512 * n + 512))
        for n, (one, heads, columns) in enumerate(zip(home.devices, *halves, strict=True))
    )
    stage = Stage(Span(0, 12), shares, Split.HYBRID, 1, wire)
    drawn, *_ = timelines(replace(chosen(home, of), stages=(stage,), head=()), home, of)
    row_bytes = {Wire.FP32: 4096, Wire.FP16: 2048, Wire.INT8: 1028}[wire]
    least_s = (
        4 * 256 * row_bytes / links_of(home)[home.devices[0].device, shares[1].device].bytes_per_s
    )
    for lane in drawn.lanes:
        busy_s = sum(last - first for first, last in lane.wire)
        assert least_s <= busy_s <= 1.5 * least_s


def test_a_pipeline_is_drawn_as_it_was_predicted() -> None:
    home = at_mbit(500, *(board(n, 0.25 + n % 2 * 0.25, 260 * MB) for n in range(3)))
    made = chosen(home, DECODER, Allowed(chunks=True))
    assert len(made.stages) == 3
    prompt, token = timelines(made, home, DECODER)
    back_s = return_s(links_of(home), made.stages[-1].lead, made.stages[0].lead)
    assert prompt.seconds + back_s == pytest.approx(made.predicted.prefill_s)
    assert token.seconds + back_s == pytest.approx(made.predicted.decode_s)
    assert f"in {made.stages[0].tiles} chunks" in prompt.title
    waits = [drawn.lanes[1].compute[0][0] for drawn in (prompt, token)]
    assert min(waits) > 0


def test_one_device_only_computes() -> None:
    home, of = at_mbit(125, board(0)), bert(12)
    (drawn,) = timelines(chosen(home, of), home, of)  # an encoder answers with no tokens
    assert drawn.lanes[0].compute == ((0.0, drawn.seconds),)
    assert drawn.lanes[0].wire == ()


def test_rows_that_are_cut_leave_a_token_to_the_lead() -> None:
    home = at_mbit(125, board(0), board(1))
    made = chosen(home, DECODER, only(Split.SEQUENCE))
    _, token = timelines(made, home, DECODER)
    lead, other = token.lanes
    assert lead.compute == ((0.0, token.seconds),)
    assert (other.compute, other.wire) == ((), ())


def test_a_cut_vocabulary_has_a_timeline_of_its_own() -> None:
    home = at_mbit(500, *(board(n, head_s=2e-2) for n in range(3)))
    made = chosen(home, DECODER, only(Split.HYBRID, head=True))
    assert made.head
    head = timelines(made, home, DECODER)[-1]
    assert {lane.device for lane in head.lanes} == {share.device for share in made.head}
    lead = next(lane for lane in head.lanes if lane.device == made.stages[-1].lead)
    others = [lane for lane in head.lanes if lane is not lead]
    assert lead.compute[0][0] == 0.0
    for other in others:  # it is asked, computes, answers
        assert 0 < other.compute[0][0] < other.wire[0][0] < head.seconds * (1 + 1e-9)


def test_what_nobody_measured_is_not_drawn() -> None:
    pair = (board(0), board(1))
    home = at_mbit(125, *pair)
    made = chosen(home, DECODER, only(Split.HYBRID))
    assert timelines(made, Cluster(pair, home.links[:1]), DECODER) == ()
    stages = pipeline((pair[0], 0, 6), (pair[1], 6, 12))
    assert timelines(replace(made, stages=stages, head=()), Cluster(pair, ()), DECODER) == ()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from((0.1, 0.25, 1.0)), min_size=1, max_size=4),
    st.sampled_from((30.0, 125.0, 1000.0)),
    st.sampled_from(list(Stacks)[:2]),
    st.sampled_from((300, 700, 4000)),
)
def test_every_plan_can_be_drawn(
    cores: list[float], mbit: float, stacks: Stacks, memory: int
) -> None:
    home = at_mbit(mbit, *(board(n, core, memory * MB) for n, core in enumerate(cores)))
    of = bert(4, stacks)
    made = chosen(home, of)
    drawn = timelines(made, home, of)
    assert drawn
    for one in drawn:
        check(one)
        assert {lane.device for lane in one.lanes} <= set(made.devices)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))
def test_merged_runs_cover_the_same(runs: list[tuple[int, int]]) -> None:
    def covered(some: object) -> set[int]:
        return {n for first, last in some for n in range(int(first), int(last))}  # type: ignore[attr-defined]

    found = merged(runs)
    assert covered(found) == covered(runs)
    assert all(one[1] < next_one[0] for one, next_one in pairwise(found))


def test_a_forecast_tells_how_a_whole_pass_is_spent() -> None:
    """Each device computes or waits from the beginning to the end, the head included."""
    home = at_mbit(500, *(board(n, head_s=2e-2) for n in range(2)))
    for stages in (
        pipeline((home.devices[0], 0, 12)),
        pipeline((home.devices[0], 0, 5), (home.devices[1], 5, 12)),
        chosen(home, DECODER, only(Split.HYBRID)).stages,
    ):
        predicted = predict(stages, home, DECODER, ONE, request=request_of(DECODER))
        assert len(predicted.forecasts) == sum(len(stage.shares) for stage in stages)
        for one in predicted.forecasts:
            decode = one.decode
            assert decode.compute_s + decode.wait_s == pytest.approx(predicted.decode_s)
        alone_s = 2e-2 / 0.25
        assert predicted.forecasts[-1 if len(stages) > 1 else 0].decode.compute_s > alone_s


def test_a_plan_in_a_few_words() -> None:
    home = at_mbit(500, board(0), board(1))
    names = {one.device: one.name for one in home.devices}
    two = plan(DECODER, (home.devices[0], 0, 5), (home.devices[1], 5, 12)).stages
    assert brief_text(two, (), names) == "laptop 0-4 > desktop 5-11"
    shared = chosen(home, DECODER, only(Split.HYBRID))
    text = brief_text(shared.stages, (), names)
    assert text.startswith("laptop + desktop 0-11, 8+8 heads")
    rows = chosen(home, DECODER, only(Split.SEQUENCE))
    assert " % rows, " in brief_text(rows.stages, (), names)
