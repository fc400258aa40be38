"""Devices that differ by no more than measuring does are one kind; others stay as they are."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.equals import NOISE, SAME_NOISE, evened
from planner.plan import Capacity
from planner.profile import Curve, DeviceProfile
from planner.request import Request
from tests.planner.homes import at_mbit, bert, board, device, lan
from tests.planner.test_groups import chosen


def slower(one: DeviceProfile, times: float) -> DeviceProfile:
    """By the clock, in all that it computes."""
    assert one.parts is not None

    def by(curve: Curve) -> Curve:
        return Curve(tuple((n, times * seconds) for n, seconds in curve.points))

    whole, small = (
        replace(
            share,
            project=by(share.project),
            attend=by(share.attend),
            close=by(share.close),
            mlp=by(share.mlp),
        )
        for share in (one.parts.whole, one.parts.small)
    )
    parts = replace(one.parts, whole=whole, small=small, connect=by(one.parts.connect))
    return replace(one, layer=by(one.layer), parts=parts)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1.0, 1.0 + NOISE - 0.01), min_size=2, max_size=4))
def test_noise_gives_nobody_another_share(factors: list[float]) -> None:
    boards = [slower(board(number), times) for number, times in enumerate(factors)]
    found = evened(at_mbit(125, *boards)).devices
    assert len({(one.layer, one.parts, one.wire, one.head_s) for one in found}) == 1
    assert [one.device for one in found] == [one.device for one in boards]
    mean_s = sum(one.layer.at(512) for one in boards) / len(boards)
    assert found[0].layer.at(512) == pytest.approx(mean_s)
    plan = chosen(at_mbit(125, *boards), bert(4), request=Request(284, 0)).plan
    rows = [len(share.rows) for stage in plan.stages for share in stage.shares if share.rows]
    assert max(rows) - min(rows) <= 8  # later rows of a tie, and rounding


@given(st.floats(0.1, 0.9))
def test_who_is_really_faster_stays_so(times: float) -> None:
    home = lan(device(0), device(1, layer_s=times * (1 - NOISE) * 1e-3))
    assert evened(home) == home


def test_one_reading_that_is_off_makes_no_other_kind() -> None:
    one, other = board(0), board(1)
    points = list(other.layer.points)
    points[1] = (points[1][0], 1.5 * points[1][1])
    other = replace(other, layer=Curve(tuple(points)))
    first, second = evened(at_mbit(125, one, other)).devices
    assert first.layer == second.layer


def test_memory_is_each_device_s_own() -> None:
    home = lan(device(0, memory_bytes=1), device(1, memory_bytes=2))
    assert [one.memory_bytes for one in evened(home).devices] == [1, 2]


def test_who_measured_something_else_is_no_kind_of_the_others() -> None:
    one, other = board(0), replace(board(1), parts=None)
    counts = replace(board(2), layer=Curve(((1, 1e-3), (2, 2e-3))))
    own = board(3, own_core=True)
    home = at_mbit(125, one, other, counts, own)
    assert evened(home) == home
    assert chosen(home, bert(4), wanted=Capacity(1, 512)).plan.stages


PI = "4 cores of Raspberry Pi 4 Model B Rev 1.4"


@given(st.lists(st.floats(1.0, 1.0 + SAME_NOISE - 0.01), min_size=2, max_size=6), st.randoms())
def test_the_same_processor_is_the_same_kind(factors: list[float], chance: random.Random) -> None:
    """Though one by one they seem to differ by more than strangers may."""
    boards = [
        replace(slower(board(number), times), processor=PI) for number, times in enumerate(factors)
    ]
    chance.shuffle(boards)
    found = evened(at_mbit(125, *boards)).devices
    assert len({(one.layer, one.parts, one.wire, one.head_s) for one in found}) == 1
    assert found[0].layer.at(512) == pytest.approx(fmean(one.layer.at(512) for one in boards))


def test_one_that_seems_faster_than_three_others_of_its_processor_gets_no_more() -> None:
    factors = (0.83, 1.0, 1.01, 1.04)
    boards = [
        replace(slower(board(number), times), processor=PI) for number, times in enumerate(factors)
    ]
    home = at_mbit(125, *boards)
    assert len({one.layer for one in evened(home).devices}) == 1
    unknown = tuple(replace(one, processor="") for one in home.devices)
    assert len({one.layer for one in evened(replace(home, devices=unknown)).devices}) == 2


@pytest.mark.parametrize("times", [0.5, 0.75, 1.3, 2.0])
def test_the_same_processor_with_another_limit_is_another_kind(times: float) -> None:
    boards = [replace(slower(board(number), 1.0), processor=PI) for number in range(2)]
    limited = replace(slower(board(2), times), processor=PI)
    found = evened(at_mbit(125, *boards, limited)).devices
    assert found[0].layer == found[1].layer != found[2].layer
    assert found[2] == limited
