"""The vocabulary over several devices: only where it is quicker, and never beyond the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import profiles
from planner.head_cost import cut_head, head_s
from planner.memory import head_bytes
from planner.network import links_of
from planner.plan import Share
from planner.profile import Cluster, ModelProfile, Stacks
from tests.planner.homes import MB, at_mbit, bert, board, lan, peer

GPT = replace(bert(4, Stacks.DECODER), vocabulary=250_000, head_bytes=200 * MB)
PLENTY = 10**12


def cut(
    home: Cluster, of: ModelProfile = GPT, room: dict[int, int] | None = None
) -> tuple[Share, ...]:
    ids = [one.device for one in home.devices]
    rooms = {one: (room or {}).get(number, PLENTY) for number, one in enumerate(ids)}
    return cut_head(ids[0], ids[1:], profiles(home), links_of(home), of, rooms)


def seconds(home: Cluster, head: tuple[Share, ...]) -> float:
    lead = home.devices[0].device
    return head_s(head, lead, profiles(home), links_of(home), GPT)


def rows(head: tuple[Share, ...]) -> list[int]:
    return [len(share.vocab) for share in head if share.vocab is not None]


def test_two_alike_halve_it_but_for_the_round_trip() -> None:
    home = at_mbit(1000, board(0, 1.0, head_s=14e-3), board(1, 1.0, head_s=14e-3))
    head = cut(home)
    assert sum(rows(head)) == GPT.vocabulary
    assert rows(head)[0] > rows(head)[1] > 100_000  # the lead asks nobody for its own
    assert 7e-3 < seconds(home, head) < 8e-3


def test_a_round_trip_that_takes_longer_is_not_made() -> None:
    pair = (board(0, 1.0, head_s=2e-3), board(1, 1.0, head_s=2e-3))
    assert cut(lan(*pair, round_trip_s=5e-3)) == ()
    assert cut(lan(*pair, round_trip_s=0.1e-3, bytes_per_s=1e8)) != ()


def test_a_device_that_cannot_be_reached_is_not_asked() -> None:
    home = at_mbit(1000, *(board(n, 1.0, head_s=14e-3) for n in range(3)))
    links = tuple(link for link in home.links if peer(2) not in (link.source, link.target))
    assert [share.device for share in cut(replace(home, links=links))] == [peer(0), peer(1)]


def test_one_without_room_for_its_rows_gets_fewer() -> None:
    home = at_mbit(1000, *(board(n, 1.0, head_s=30e-3) for n in range(3)))
    head = cut(home, room={1: 20 * MB})
    assert rows(head)[1] == GPT.vocabulary // 10
    assert sum(rows(head)) == GPT.vocabulary
    assert cut(home, room={0: 0, 1: 20 * MB, 2: 20 * MB}) == ()


def test_a_lead_that_cannot_hold_it_holds_a_part() -> None:
    home = at_mbit(1000, board(0, 1.0), board(1, 1.0))
    assert rows(cut(home, room={0: 50 * MB})) == [62_500, 187_500]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1e-4, 0.1), st.integers(0, 300)),
        min_size=2,
        max_size=8,
    ),
    st.floats(1e-5, 1e-2),
)
def test_it_adds_up_and_gains(parts: list[tuple[float, int]], round_trip_s: float) -> None:
    devices = [board(n, 1.0, head_s=seconds) for n, (seconds, _) in enumerate(parts)]
    home = lan(*devices, round_trip_s=round_trip_s, bytes_per_s=1e8)
    room = {number: size * MB for number, (_, size) in enumerate(parts)}
    head = cut(home, room=room)
    if not head:
        return
    assert sum(rows(head)) == GPT.vocabulary
    assert min(rows(head)) > 0
    for share in head:
        number = [one.device for one in devices].index(share.device)
        assert head_bytes(GPT, share.vocab) <= room[number] + 1000  # a row
    if room[0] >= GPT.head_bytes:
        assert seconds(home, head) < seconds(home, ()) * (1 + 1e-9)


def test_a_cut_that_gains_nothing_is_not_made() -> None:
    home = lan(board(0, 1.0, head_s=1e-3), board(1, 0.01, head_s=1e-3), round_trip_s=0.1e-3)
    assert cut(home) == ()


def test_nobody_else_is_asked_without_a_vocabulary_of_one_s_own() -> None:
    home = at_mbit(1000, board(0))
    assert cut(home) == ()
    assert seconds(home, ()) == pytest.approx(home.devices[0].head_s)
