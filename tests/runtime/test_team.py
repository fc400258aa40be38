"""The threads that share a loop, and what they do when the cores belong to somebody else."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from runtime.compute import team
from runtime.compute.compiled import available
from runtime.compute.team import LOOPS_ALONE, Team


class Clock:
    """Each loop takes as long as it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.loop_s = 1e-4
        self._odd = False

    def perf_counter(self) -> float:
        self._odd = not self._odd
        if not self._odd:
            self.now_s += self.loop_s
        return self.now_s


@pytest.fixture
def made() -> Iterator[Team]:
    threads = torch.get_num_threads()
    team.assemble(2)
    found = team.team()
    if found is None:
        pytest.skip("there is no OpenMP, or no llvmlite, to make a team with")
    yield found
    team.assemble(threads)


def nothing_to_do() -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 4)()


def test_one_slow_loop_makes_the_leader_work_alone_for_a_while(
    made: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(team, "time", clock)
    assert all(made.run(0, 0, nothing_to_do(), 1000) for _ in range(5))
    clock.loop_s = 5e-3  # a helper was put aside with a piece in hand
    assert made.run(0, 0, nothing_to_do(), 1000), "it was only seen afterwards"
    assert not any(made.run(0, 0, nothing_to_do(), 1000) for _ in range(LOOPS_ALONE))
    clock.loop_s = 1e-4
    assert all(made.run(0, 0, nothing_to_do(), 1000) for _ in range(5)), "and tries again"


def test_a_long_loop_is_no_slow_one(made: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(team, "time", clock)
    clock.loop_s = 5e-2
    assert all(made.run(0, 0, nothing_to_do(), 10**9) for _ in range(5))


def test_one_thread_has_no_team() -> None:
    threads = torch.get_num_threads()
    team.assemble(1)
    assert team.team() is None
    team.assemble(threads)


def test_llvmlite_is_a_dependency() -> None:
    """Without it all of this would be skipped, and nobody would notice."""
    assert available()
