"""How much each device of a stage gets: all of it is given, to none more than it can hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.counting import spans, whole_numbers
from planner.memory import alike, share_bytes
from planner.plan import ROW_UNITS, Capacity, Share, Span
from planner.profile import DeviceProfile, ModelProfile, Stacks
from planner.request import Request
from planner.shares import Cutting, cut_rows, cut_weights, even_rows, rows_by_speed
from tests.planner.homes import COLUMNS, HEADS, MB, bert, board, peer

ROOM = Capacity(1, 512)
NONE = Span(0, 0)


def cutting(
    *devices: DeviceProfile, of: ModelProfile | None = None, limits: tuple[int, ...] = ()
) -> Cutting:
    of = of or bert(4)
    layers = Span(0, len(of.layers))
    limits = limits or tuple(one.memory_bytes for one in devices)
    return Cutting(of, layers, devices, ROOM, Request(), limits, tuple(alike(of, layers)))


def sizes(shares: tuple[Share, ...] | None) -> list[tuple[int, int]]:
    assert shares is not None
    return [(len(share.heads or NONE), len(share.columns or NONE)) for share in shares]


# --- whole numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "weights", "most", "counts"),
    [
        (10, [1, 1], [10, 10], [5, 5]),
        (10, [3, 1], [10, 10], [8, 2]),  # 7.5 and 2.5: of equal remainders the first
        (10, [1, 1000], [10, 10], [1, 9]),  # nobody gets nothing
        (10, [1, 1], [3, 10], [3, 7]),
        (3, [1, 1, 1], [9, 9, 9], [1, 1, 1]),
        (2, [1, 1, 1], [9, 9, 9], None),
        (10, [1, 1], [4, 5], None),
        (10, [1, 1], [0, 10], None),
        (1 << 18, [1.0, 1e-9], [1 << 18, 1 << 18], [(1 << 18) - 1, 1]),
    ],
)
def test_whole_numbers_in_proportion(
    total: int, weights: list[float], most: list[int], counts: list[int] | None
) -> None:
    assert whole_numbers(total, weights, most) == counts


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e6), st.integers(1, 500)), min_size=1, max_size=8),
    st.integers(1, 2000),
)
def test_whole_numbers_add_up(parts: list[tuple[float, int]], total: int) -> None:
    weights, most = [list(column) for column in zip(*parts, strict=True)]
    counts = whole_numbers(total, weights, most)
    possible = len(parts) <= total <= sum(most)
    assert (counts is not None) is possible
    if counts is not None:
        assert sum(counts) == total
        assert all(1 <= count <= cap for count, cap in zip(counts, most, strict=True))
        assert spans(counts)[-1].last == total


# --- heads and columns ---------------------------------------------------------------------------


def test_equal_devices_get_equal_shares() -> None:
    assert sizes(cut_weights(cutting(*(board(n) for n in range(4))))) == [(4, 1024)] * 4


def test_four_times_the_speed_gets_four_times_as_much() -> None:
    """But for what a call costs whatever it computes, of which the slow one has more."""
    (heads, columns), _ = sizes(cut_weights(cutting(board(0, 1.0), board(1, 0.25))))
    assert heads in (13, 14)
    assert 0.8 * COLUMNS < columns <= 0.9 * COLUMNS


def test_what_one_has_no_memory_for_goes_to_the_others() -> None:
    whole = share_bytes(bert(4), Span(0, 4), Share(peer(0)), ROOM)
    small = cutting(board(0), board(1), board(2), limits=(whole // 5, whole, whole))
    (_, few), (_, more), (_, most) = sizes(cut_weights(small))
    assert few < 0.2 * COLUMNS < 0.4 * COLUMNS < more < most + 200


def test_what_all_together_have_no_memory_for_is_not_cut() -> None:
    whole = share_bytes(bert(4), Span(0, 4), Share(peer(0)), ROOM)
    assert cut_weights(cutting(board(0), board(1), limits=(whole // 3, whole // 2))) is None


def test_more_devices_than_heads_share_no_heads() -> None:
    assert cut_weights(cutting(*(board(n) for n in range(HEADS + 1)))) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from((0.1, 0.25, 1.0, 4.0)), st.integers(1, 300)),
        min_size=2,
        max_size=8,
    )
)
def test_shares_are_cut_within_the_memory(parts: list[tuple[float, int]]) -> None:
    devices = [board(n, core, memory * MB) for n, (core, memory) in enumerate(parts)]
    asked = cutting(*devices)
    shares = cut_weights(asked)
    if shares is None:
        # Whole heads and units leave a little unused; no more than that was too much.
        needed = share_bytes(asked.model, asked.layers, Share(peer(0)), ROOM)
        assert sum(asked.limits) < 1.6 * needed or min(asked.limits) < needed / 8
        return
    heads = [share.heads for share in shares]
    columns = [share.columns for share in shares]
    for found, total in ((heads, HEADS), (columns, COLUMNS)):
        edges = [0, *(span.last for span in found if span is not None)]
        assert [span.first for span in found if span is not None] == edges[:-1]
        assert edges[-1] == total
        assert all(span is not None and len(span) > 0 for span in found)
    for share, limit in zip(shares, asked.limits, strict=True):
        assert share_bytes(asked.model, asked.layers, share, ROOM) <= limit


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacks", [Stacks.DECODER, Stacks.ENCODER])
def test_the_lead_has_the_last_rows(stacks: Stacks) -> None:
    rows = [share.rows for share in cut_rows(cutting(*map(board, range(3)), of=bert(4, stacks)))]
    assert rows[0] is not None
    assert rows[1] is not None
    assert (rows[1].first, rows[0].last) == (0, ROW_UNITS)
    covered = sorted((span.first, span.last) for span in rows if span is not None)
    assert [last for _, last in covered[:-1]] == [first for first, _ in covered[1:]]


def test_later_rows_are_fewer_where_they_see_more() -> None:
    first, last = (
        len(share.rows or NONE)
        for share in reversed(cut_rows(cutting(board(0), board(1), of=bert(4, Stacks.DECODER))))
    )
    assert first > last > 0.8 * first
    equal = cut_rows(cutting(board(0), board(1)))
    assert [len(share.rows or NONE) for share in equal] == [ROW_UNITS // 2] * 2


def test_rows_even_or_by_speed() -> None:
    asked = cutting(board(0, 1.0), board(1, 0.25))
    shares = cut_weights(asked)
    assert shares is not None
    assert [len(share.rows or NONE) for share in even_rows(shares)] == [512, 512]
    fast, slow = rows_by_speed(shares, asked)
    assert fast.rows is not None
    assert slow.rows is not None
    assert (fast.heads, fast.rows.first, slow.rows.last) == (shares[0].heads, 0, ROW_UNITS)
    assert len(fast.rows) == pytest.approx(0.8 * ROW_UNITS, abs=2)
