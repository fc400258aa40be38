"""The threads that share a compiled loop: those that torch computes with, so that no core has two.

torch keeps a team of OpenMP threads for each thread that calls it. Our loops run in the very same
one: with helpers of our own beside it, whoever had just worked waited for more on a core that the
other one needed.
"""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any, Final

import torch

HEADER_WORDS: Final = 4  # of a job, before the kernel's own: see `team_code`
# Pieces a thread: few, for each costs a claim, yet so many that all end at nearly the same time.
PIECES_A_THREAD: Final = 4
PIECE_COST: Final = 1 << 19  # nor more in a piece: some 50 us, the longest that others wait
# A helper that the system puts aside keeps all waiting for milliseconds. Where a loop takes so much
# longer than it once did, one thread works alone for a while: the cores belong to somebody else.
PUT_ASIDE_S: Final = 1e-3
PUT_ASIDE_TIMES: Final = 4
LOOPS_ALONE: Final = 200


class Team:
    """`threads` in all, the caller included."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._alone = 0  # loops to go without helpers
        self._best_s: dict[int, float] = {}  # of each kernel, for a unit of its cost
        self._parallel, self._work = _functions()

    def run(self, kernel: int, rows: int, job: ctypes.Array[ctypes.c_int64], cost: int) -> bool:
        """Runs `kernel` over `rows`, of so many weights or numbers; False if it is better done
        alone. `job` is as `team_code` has it, its first words still empty.
        """
        if self._alone:
            self._alone -= 1
            return False
        each = PIECE_COST * rows // cost
        step = max(1, min(-(-rows // (PIECES_A_THREAD * self.threads)), each))
        job[:HEADER_WORDS] = [0, kernel, rows, step]
        started_s = time.perf_counter()
        self._parallel(self._work, job, self.threads, 0)
        self._note(kernel, cost, time.perf_counter() - started_s)
        return True

    def _note(self, kernel: int, cost: int, took_s: float) -> None:
        best_s = self._best_s.get(kernel, took_s / cost)
        if took_s > PUT_ASIDE_S + PUT_ASIDE_TIMES * best_s * cost:
            self._alone = LOOPS_ALONE
        self._best_s[kernel] = min(best_s, took_s / cost)


def assemble(threads: int) -> None:
    """Makes this thread's compute `threads` wide: torch's operations, and the loops' team.

    To be the first call of torch in a compute thread: set later, or elsewhere, torch starts a
    second team of its own and burns several times the CPU.
    """
    torch.set_num_threads(threads)
    _teams[:] = [Team(threads) if threads > 1 and _openmp() is not None else None]


def team() -> Team | None:
    """The team that was assembled last; None where there is one thread."""
    return _teams[0]


_teams: list[Team | None] = [None]  # of the process, as its cores are


@cache
def _openmp() -> Any:
    """OpenMP's way to run a function in all threads, as torch brought it; None without."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _functions() -> tuple[Any, int]:
    """OpenMP's, and the address of what each thread does."""
    from runtime.compute.machine_code import Module
    from runtime.compute.team_code import work_code

    module = Module()
    work_code(module.code)
    _kept.append(module)
    return _openmp(), module.address("work")


_kept: list[Any] = []  # code that lives as long as the process
