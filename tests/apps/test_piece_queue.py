"""Which piece from whom: everything wanted comes once, from somebody who has it, whatever fails."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from apps.models.pace import SPAN_S, Pace
from apps.models.piece_queue import PieceQueue, window_bytes
from mesh.limits import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES
from tests.runtime.room import peer

COUNT = 40
pieces = st.sets(st.integers(0, COUNT - 1))
holdings = st.lists(pieces, min_size=1, max_size=5)


def runs(has: set[int]) -> list[tuple[int, int]]:
    return [(index, index + 1) for index in sorted(has)]


@given(wanted=pieces, has=holdings, seed=st.integers(0, 1 << 30))
def test_all_that_somebody_has_comes_and_the_rest_is_named(
    wanted: set[int], has: list[set[int]], seed: int
) -> None:
    """With sources that vanish, lose pieces and give damaged ones at random."""
    rng = random.Random(seed)
    queue = PieceQueue(COUNT)
    sources = {peer(n): set(held) for n, held in enumerate(has)}
    failed: dict[int, set[str]] = {}
    for source, held in sources.items():
        queue.offer(source, runs(held))
    queue.want(wanted)
    arrived: list[int] = []
    asked: dict[int, str] = {}
    for _ in range(2000):
        source = rng.choice(list(sources)) if sources else None
        if source is None or not queue.wanted:
            break
        index = queue.next_for(source)
        if index is not None:
            assert index in sources[source], "asked of somebody who does not have it"
            assert source not in failed.get(index, set()), "asked again of who failed"
            assert index not in asked, "asked of two at once"
            assert index in wanted
            assert index not in arrived
            asked[index] = source
        fate = rng.random()
        mine = [index for index, whom in asked.items() if whom == source]
        if fate < 0.6 and mine:
            done = rng.choice(mine)
            del asked[done]
            arrived.append(done)
            queue.arrived(done)
        elif fate < 0.7 and mine:
            bad = rng.choice(mine)
            del asked[bad]
            failed.setdefault(bad, set()).add(source)
            queue.failed(bad, source)
        elif fate < 0.73 and len(sources) > 1:
            queue.withdraw(source)
            del sources[source]
            asked = {index: whom for index, whom in asked.items() if whom != source}
    # Whoever is left brings what is left.
    for index in asked:
        arrived.append(index)
        queue.arrived(index)
    for source in sources:
        while (index := queue.next_for(source)) is not None:
            arrived.append(index)
            queue.arrived(index)
    assert len(arrived) == len(set(arrived))
    can = {
        index
        for index in wanted
        for source, held in sources.items()
        if index in held and source not in failed.get(index, set())
    }
    assert can <= set(arrived)
    assert set(queue.orphans) == wanted - set(arrived)
    assert queue.wanted == len(wanted - set(arrived))


@given(first=pieces, second=pieces)
def test_what_is_wanted_last_comes_first(first: set[int], second: set[int]) -> None:
    """The share that a plan waits for goes before the rest of a pull."""
    queue = PieceQueue(COUNT)
    queue.offer(peer(1), [(0, COUNT)])
    queue.want(first)
    queue.want(second)
    order = []
    while (index := queue.next_for(peer(1))) is not None:
        order.append(index)
    assert set(order[: len(second)]) == second
    assert set(order) == first | second


def test_a_device_with_a_part_brings_it_while_another_brings_the_rest() -> None:
    queue = PieceQueue(COUNT)
    queue.offer(peer(1), [(0, COUNT)])
    queue.offer(peer(2), [(0, 10)])
    queue.want(range(COUNT))
    assert [queue.next_for(peer(1)) for _ in range(30)] == list(range(10, 40))
    assert [queue.next_for(peer(2)) for _ in range(10)] == list(range(10))


def test_what_nobody_wants_any_more_is_not_asked_for() -> None:
    queue = PieceQueue(COUNT)
    queue.offer(peer(1), [(0, COUNT)])
    queue.want([1, 2, 3])
    queue.unwant([1, 3])
    assert queue.next_for(peer(1)) == 2
    assert queue.next_for(peer(1)) is None


def test_runs_beyond_the_model_are_cut() -> None:
    queue = PieceQueue(COUNT)
    queue.offer(peer(1), [(-5, 2), (38, 1000)])
    queue.want(range(-3, 99))
    assert queue.wanted == COUNT
    assert {queue.next_for(peer(1)) for _ in range(5)} == {0, 1, 38, 39, None}


@given(st.floats(0, 1e12))
def test_the_window_stays_within_its_bounds(bytes_per_s: float) -> None:
    assert MIN_WINDOW_BYTES <= window_bytes(bytes_per_s) <= MAX_WINDOW_BYTES


def test_the_pace_is_that_of_the_last_moments() -> None:
    pace = Pace(100.0)
    assert pace.bytes_per_s(100.0) == 0
    for tick in range(40):
        pace.add(1000, 100.0 + tick / 10)
    assert abs(pace.bytes_per_s(103.9) - 10_000) < 1500
    assert pace.bytes_per_s(103.9 + 2 * SPAN_S) == 0
