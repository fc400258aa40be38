"""Logs: every row that was added is given again, or none, and together they keep to their limit."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.logs import BLOCK_ROWS, Log, Logs

WIDTH = 4
BLOCK_BYTES = BLOCK_ROWS * WIDTH * 4


def rows(position: int, count: int, version: int = 0) -> Tensor:
    """[N, WIDTH] that tell each position, and each time it was computed, from all others."""
    numbers = torch.arange(position, position + count, dtype=torch.float32) + version / 1000
    return numbers[:, None].expand(count, WIDTH)


def content(log: Log) -> Tensor:
    """[N, 1]"""
    found = log.rows(log.first, log.end - log.first)
    return torch.empty(0) if found is None else found[:, 0]


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 600), st.integers(0, 700), st.booleans()),
    max_size=12,
)


@given(steps=STEPS)
@settings(deadline=None, max_examples=60)
def test_each_of_several_that_share_rows_has_its_own(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    """Steps of any length after going back any way, on logs that lend to each other."""
    logs = Logs(1 << 30)
    each, expected = [logs.begin()], [torch.empty(0)]
    for version, (which, count, back, lends) in enumerate(steps):
        index = which % len(each)
        log, held = each[index], expected[index]
        position = max(0, log.end - back)
        if lends:
            each.append(log.lend(position))
            expected.append(held[:position])
            continue
        new = rows(position, count, version)
        log.add(position, new)
        expected[index] = torch.cat([held[:position], new[:, 0]])
        for one, has in zip(each, expected, strict=True):
            assert torch.equal(content(one), has)


def test_any_part_of_it() -> None:
    log = Logs(1 << 30).begin()
    log.add(0, rows(0, 3 * BLOCK_ROWS + 7))
    for first, count in ((0, 1), (BLOCK_ROWS - 1, 2), (5, 2 * BLOCK_ROWS), (3 * BLOCK_ROWS, 7)):
        found = log.rows(first, count)
        assert found is not None
        assert torch.equal(found, rows(first, count))
    assert log.rows(3 * BLOCK_ROWS, 8) is None
    assert log.rows(-1, 2) is None
    assert log.rows(0, 0) is None


def test_behind_a_gap_it_begins_anew() -> None:
    """A conversation that goes on from tokens which another stage of the home has in no log."""
    log = Logs(1 << 30).begin()
    log.add(0, rows(0, 10))
    log.add(64, rows(64, 3))
    assert (log.first, log.end) == (64, 67)
    assert log.rows(9, 1) is None


def test_where_the_limit_is_reached_the_oldest_ends() -> None:
    logs = Logs(2 * BLOCK_BYTES)
    old, new = logs.begin(), logs.begin()
    old.add(0, rows(0, BLOCK_ROWS))
    new.add(0, rows(0, BLOCK_ROWS))
    assert logs.size_bytes == 2 * BLOCK_BYTES
    new.add(BLOCK_ROWS, rows(BLOCK_ROWS, 1))
    assert (old.first, old.end, old.size_bytes) == (0, 0, 0)
    assert new.end == BLOCK_ROWS + 1
    old.add(BLOCK_ROWS, rows(BLOCK_ROWS, 5))
    assert old.rows(BLOCK_ROWS, 1) is None, "one that ended stays so"
    assert logs.size_bytes == 2 * BLOCK_BYTES


def test_one_that_is_too_long_by_itself_ends() -> None:
    logs = Logs(2 * BLOCK_BYTES)
    log = logs.begin()
    log.add(0, rows(0, 3 * BLOCK_ROWS))
    assert logs.size_bytes == 0
    assert log.rows(0, 1) is None


def test_one_that_nobody_has_any_more_takes_no_room() -> None:
    logs = Logs(BLOCK_BYTES)
    gone = logs.begin()
    gone.add(0, rows(0, 1))
    del gone
    gc.collect()
    log = logs.begin()
    log.add(0, rows(0, 1))
    assert log.rows(0, 1) is not None


@pytest.mark.parametrize("limit_bytes", [0, BLOCK_BYTES - 1])
def test_no_room_at_all_is_no_error(limit_bytes: int) -> None:
    log = Logs(limit_bytes).begin()
    log.add(0, rows(0, 5))
    assert (log.first, log.end) == (0, 0)
