"""Compute threads and wires, against schedules drawn by hand."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.lanes import HANDOFF_S, Busy, Chunk, Piece, Program, Wires, finish_s, wires_of
from planner.network import links_of
from planner.profile import Cluster, WireCost
from tests.planner.homes import at_mbit, board

FREE = WireCost(0.0, 0.0, 0.0, 0.0, own_core=False)


def wires(count: int = 2, speed: float = 1.0, cost: WireCost = FREE, burst_s: float = 0.0) -> Wires:
    """Bytes a second, and no latency."""
    speeds = tuple(tuple(inf if a == b else speed for b in range(count)) for a in range(count))
    return Wires(speeds, ((0.0,) * count,) * count, ((burst_s,) * count,) * count, (cost,) * count)


def ends(programs: list[Program], between: Wires) -> list[float]:
    return [layers[0] for layers in finish_s(programs, between, 1)]


def test_a_piece_travels_while_its_sender_goes_on() -> None:
    sends = [[Chunk(1.0, pieces=(Piece(1, "a", 4, 1),)), Chunk(3.0)]]
    waits = [[Chunk(2.0, needs=("a",))]]
    assert ends([sends, waits], wires()) == [4.0, 7.0]  # 1 s, 4 s on the wire, 2 s


def test_a_link_carries_one_piece_after_the_other() -> None:
    sends = [[Chunk(1.0, pieces=(Piece(1, "a", 2, 1), Piece(1, "b", 2, 1)))]]
    waits = [[Chunk(0.0, needs=("b",))]]
    assert ends([sends, waits], wires())[1] == 5.0


def test_all_that_happens_is_told() -> None:
    sends = [[Chunk(1.0, pieces=(Piece(1, "a", 4, 1),)), Chunk(3.0)]]
    waits = [[Chunk(2.0, needs=("a",))]]
    trace: list[Busy] = []
    finish_s([sends, waits], wires(), 1, trace)
    assert sorted(trace, key=lambda one: (one.device, one.on_wire, one.first_s)) == [
        Busy(0, False, 0.0, 1.0),
        Busy(0, False, 1.0, 4.0),
        Busy(0, True, 1.0, 5.0),
        Busy(1, False, 5.0, 7.0),
    ]


def test_two_that_send_to_one_share_what_goes_into_it() -> None:
    to_first = [[[Chunk(1.0, pieces=(Piece(0, key, 4, 1),))]] for key in ("a", "b")]
    waits = [[Chunk(0.0, needs=("a", "b"))]]
    assert ends([waits, *to_first], wires(3))[0] == 9.0


def test_three_that_send_to_each_other_in_turn_share_nothing() -> None:
    """Each begins with the next one, so that at any time one piece goes into each device."""
    programs: list[Program] = []
    for me in range(3):
        pieces = tuple(Piece((me + step) % 3, me, 4, 1) for step in (1, 2))
        needs = tuple((me + step) % 3 for step in (1, 2))
        programs.append([[Chunk(1.0, pieces=pieces), Chunk(0.0, needs=needs)]])
    assert ends(programs, wires(3)) == [9.0, 9.0, 9.0]


def test_an_idle_link_is_ahead_by_a_burst() -> None:
    """And again when it has been idle for as long as that took."""
    sends = [[Chunk(1.0, pieces=(Piece(1, "a", 4, 1),)), Chunk(1.0, pieces=(Piece(1, "b", 4, 1),))]]
    waits = [[Chunk(0.0, needs=("a",)), Chunk(0.0, needs=("b",))]]
    assert ends([sends, [waits[0][:1]]], wires(burst_s=3.0))[1] == 2.0
    assert ends([sends, waits], wires(burst_s=3.0))[1] == 6.0  # at 9.0 without
    later = [[sends[0][0], Chunk(4.0, pieces=(Piece(1, "b", 4, 1),))]]
    assert ends([later, waits], wires(burst_s=3.0))[1] == 6.0
    assert ends([sends, waits], wires(burst_s=30.0))[1] == 2.0


def test_what_can_go_on_goes_on_while_the_rest_waits() -> None:
    """Two tiles: the second is computed while the first one's answer is on its way."""
    tile = [Chunk(1.0, pieces=(Piece(1, "ask", 1, 1),)), Chunk(1.0, needs=("answer",))]
    other = [Chunk(2.0)]
    answers = [[Chunk(0.5, needs=("ask",), pieces=(Piece(0, "answer", 1, 1),))]]
    # 1 s, then 2 s of the other tile; the answer is there after 3.5 s.
    assert ends([[tile, other], answers], wires())[0] == 4.5


def test_the_chain_that_came_least_far_is_next() -> None:
    first, second = [Chunk(1.0), Chunk(1.0)], [Chunk(1.0, pieces=(Piece(1, "a", 1, 1),))]
    waits = [[Chunk(0.0, needs=("a",))]]
    assert ends([[first, second], waits], wires())[1] == 3.0  # not behind both of the first


def test_a_mark_holds_another_chain_back() -> None:
    later = [Chunk(1.0, needs=("mark",))]
    before = [Chunk(2.0, marks=("mark",))]
    assert ends([[later, before]], wires(1)) == [3.0]


@pytest.mark.parametrize(("own_core", "end"), [(False, 6.0), (True, 5.0)])
def test_sending_takes_of_a_core_that_computes(own_core: bool, end: float) -> None:
    cost = WireCost(0.0, 1.0, 0.0, 0.0, own_core)
    sends = [[Chunk(1.0, pieces=(Piece(1, "a", 0, 1),)), Chunk(4.0)]]
    assert ends([sends, [[Chunk(0.0)]]], wires(cost=cost))[0] == end


@pytest.mark.parametrize(("own_core", "end"), [(False, 7.0), (True, 5.0)])
def test_receiving_takes_of_a_core_that_computes(own_core: bool, end: float) -> None:
    cost = WireCost(0.0, 0.0, 0.0, 2.0, own_core)
    sends = [[Chunk(1.0, pieces=(Piece(1, "a", 0, 1),))]]
    assert ends([sends, [[Chunk(5.0)]]], wires(cost=cost))[1] == end


def test_who_waits_loses_nothing_to_sending() -> None:
    cost = WireCost(0.0, 1.0, 0.0, 0.0, own_core=False)
    asks = [[Chunk(1.0, pieces=(Piece(1, "ask", 1, 1),)), Chunk(1.0, needs=("answer",))]]
    answers = [[Chunk(0.0, needs=("ask",), pieces=(Piece(0, "answer", 1, 1),))]]
    # 1 s; 1 s to send and 1 s on the wire, twice; 1 s.
    assert ends([asks, answers], wires(cost=cost))[0] == 6.0


def test_what_never_comes_is_waited_for_without_end() -> None:
    assert ends([[[Chunk(1.0, needs=("never",))]]], wires(1)) == [inf]


def test_a_link_that_nobody_measured_carries_nothing() -> None:
    pair = (board(0), board(1))
    home = at_mbit(1000, *pair)
    assert wires_of(pair, links_of(home)).is_whole
    assert wires_of(pair, links_of(home)).latency_s[0][1] == pytest.approx(0.2e-3 + HANDOFF_S)
    one_way = Cluster(pair, home.links[:1])
    assert not wires_of(pair, links_of(one_way)).is_whole


@given(
    st.lists(st.floats(0.01, 5.0), min_size=1, max_size=6),
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.floats(0.1, 10.0),
)
def test_it_takes_no_less_than_the_work_and_the_wire(
    seconds: list[float], sizes: list[int], speed: float
) -> None:
    """And no more than both, one after the other."""
    pieces = [Piece(1, number, size, 1) for number, size in enumerate(sizes)]
    chunks = [Chunk(one) for one in seconds]
    chunks[0] = Chunk(seconds[0], pieces=tuple(pieces))
    waits = [[Chunk(0.0, needs=tuple(range(len(sizes))))]]
    first, second = ends([[chunks], waits], wires(speed=speed))
    wire_s = sum(sizes) / speed
    assert first == pytest.approx(sum(seconds))
    assert second == pytest.approx(seconds[0] + wire_s)
