"""What plans hold on each device, and what must be loaded when they are cut anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost import predict
from planner.memory import device_bytes, head_bytes, part_bytes, placed_bytes, share_bytes
from planner.plan import Capacity, Plan, Share, Span, Split, Stage
from planner.profile import Stacks
from planner.replan import moved_bytes
from planner.room import with_room
from tests.planner.homes import COLUMNS, HEADS, MB, at_mbit, bert, board, peer, plan

BERT = replace(bert(4, Stacks.DECODER), head_bytes=100 * MB, vocabulary=1000)
LAYER = BERT.layers[0].weight_bytes
EVERY = Span(0, 4)
BARE = Capacity(0, 0)
ROOM = Capacity(2, 1000)
CACHE = 2 * 1000 * 8192  # of one layer


def halves(first: int = 0, at: int = 8) -> tuple[Share, ...]:
    """Cut at a head, and at as much of the columns; the devices from `first` on."""
    columns = COLUMNS * at // HEADS
    return (
        Share(peer(first), Span(0, at), Span(0, columns)),
        Share(peer(first + 1), Span(at, HEADS), Span(columns, COLUMNS)),
    )


def shared(*shares: Share, split: Split = Split.HYBRID) -> tuple[Stage, ...]:
    return (Stage(EVERY, shares, split),)


def running(stages: tuple[Stage, ...], head: tuple[Share, ...] = ()) -> Plan:
    return replace(plan(BERT, (board(0), 0, 4)), stages=stages, head=head)


def test_halves_hold_half_and_the_norms_twice() -> None:
    held = placed_bytes(BERT, shared(*halves()), (), ROOM)
    assert held[peer(1)] == pytest.approx(4 * (LAYER + CACHE) / 2, rel=0.001)
    assert held[peer(0)] == held[peer(1)] + 100 * MB  # the lead has the head


def test_rows_are_cut_and_every_device_holds_all() -> None:
    shares = (Share(peer(0), rows=Span(512, 1024)), Share(peer(1), rows=Span(0, 512)))
    held = placed_bytes(BERT, shared(*shares, split=Split.SEQUENCE), (), ROOM)
    assert held == {peer(0): 4 * (LAYER + CACHE) + 100 * MB, peer(1): 4 * (LAYER + CACHE)}


def test_rows_of_the_vocabulary_are_where_the_head_says() -> None:
    head = (Share(peer(0), vocab=Span(0, 250)), Share(peer(2), vocab=Span(250, 1000)))
    held = placed_bytes(BERT, shared(Share(peer(0)), split=Split.WHOLE), head, BARE)
    assert held == {peer(0): 4 * LAYER + 25 * MB, peer(2): 75 * MB}
    made = running(shared(Share(peer(0)), split=Split.WHOLE), head)
    assert device_bytes(BERT, made, peer(2), BARE) == 75 * MB
    assert device_bytes(BERT, made, peer(1), BARE) == 0


def test_one_kv_head_for_all_is_held_by_all() -> None:
    of = replace(BERT, cuts=(replace(BERT.cuts[0], kv_heads=1),))
    held = [
        share_bytes(of, EVERY, share, ROOM) - share_bytes(of, EVERY, share, BARE)
        for share in halves()
    ]
    assert held == [4 * CACHE] * 2


def test_a_plan_in_less_room_holds_less() -> None:
    stages = shared(*halves())
    home = at_mbit(1000, board(0), board(1))
    before = replace(running(stages), predicted=predict(stages, home, BERT, ROOM), capacity=ROOM)
    less = Capacity(1, 1000)
    after = with_room(before, BERT, less)
    assert after.predicted.memory_bytes == predict(stages, home, BERT, less).memory_bytes


@given(st.integers(1, HEADS - 1))
def test_parts_are_no_more_than_the_whole_and_what_each_has(at: int) -> None:
    parts = [part_bytes(BERT, 0, share) for share in halves(at=at)]
    rest = BERT.cuts[0].rest_bytes
    assert LAYER <= sum(parts) <= LAYER + rest + 2 * 131_072  # a unit that is cut through
    assert max(parts) <= LAYER


# --- what must be loaded -------------------------------------------------------------------------


def test_the_same_cut_loads_nothing() -> None:
    stages = shared(*halves())
    assert moved_bytes(running(stages), stages, BERT) == 0


def test_a_share_of_what_is_held_loads_nothing() -> None:
    old = running(shared(Share(peer(0)), split=Split.WHOLE))
    moved = moved_bytes(old, shared(*halves()), BERT)
    assert moved == 4 * part_bytes(BERT, 0, halves()[1])  # all of it by the other device


def test_a_larger_share_loads_what_it_lacks() -> None:
    old = running(shared(*halves(at=8)))
    moved = moved_bytes(old, shared(*halves(at=12)), BERT)
    assert moved == pytest.approx(LAYER, rel=0.01)  # a quarter of each of four
    back = moved_bytes(old, shared(Share(peer(0)), split=Split.WHOLE), BERT)
    assert back == pytest.approx(2 * LAYER, rel=0.01)


def test_shares_that_change_places_load_all() -> None:
    old = running(shared(*halves()))
    swapped = tuple(replace(one, device=peer(1 - n)) for n, one in enumerate(halves()))
    moved = moved_bytes(old, shared(*swapped), BERT)
    assert moved == sum(4 * part_bytes(BERT, 0, share) for share in halves()) + 100 * MB


def test_rows_of_the_vocabulary_that_are_there_are_not_loaded() -> None:
    stages = shared(Share(peer(0)), split=Split.WHOLE)
    head = (Share(peer(0), vocab=Span(0, 600)), Share(peer(1), vocab=Span(600, 1000)))
    assert moved_bytes(running(stages), stages, BERT, head) == head_bytes(BERT, Span(600, 1000))
    assert moved_bytes(running(stages, head), stages, BERT) == 40 * MB
    further = (Share(peer(0), vocab=Span(0, 500)), Share(peer(1), vocab=Span(500, 1000)))
    assert moved_bytes(running(stages, head), stages, BERT, further) == 10 * MB


def test_a_plan_cut_where_nobody_knows_how_is_whole() -> None:
    """Of a model whose profile says nothing of cuts, and a plan that was told by another."""
    blind = replace(BERT, cuts=())
    assert share_bytes(blind, EVERY, halves()[0], BARE) == 4 * LAYER
    old = running(shared(*halves()))
    assert moved_bytes(old, shared(*halves(at=4)), blind) == 0
