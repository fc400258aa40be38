"""A team of threads for the compiled loops: the caller leads, helpers take pieces beside it.

Helpers sleep until a step begins, then look for work for a while (no longer than the gaps within a
step), so that a layer's loops are shared within a microsecond and an idle device stays idle.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import torch

# Looks in a row without work until a helper sleeps: some 3 ms, longer than from one loop of a step
# to the next, or from one token of a stream to the next.
TURNS: Final = 2_000_000
# Pieces a thread: few, for each costs a claim, yet so many that all end at nearly the same time.
PIECES_A_THREAD: Final = 4
PIECE_GROUPS: Final = 1 << 14  # nor more in a piece: some 50 us, the longest that others wait
# A helper that was put aside with a piece in hand keeps all waiting for milliseconds. Seen once (so
# many looks, some 1 ms), the leader works alone for a while: the cores belong to somebody else.
LONG_WAIT: Final = 20_000
LOOPS_ALONE: Final = 200


class Team:
    """`threads` in all, the caller included. One loop at a time; a second caller works alone."""

    def __init__(self, threads: int) -> None:
        from runtime.compute import team_code  # needs llvmlite, as all that asks for a team does

        self._code = team_code
        self._job = (ctypes.c_int64 * team_code.WORDS)()
        self._address = ctypes.addressof(self._job)
        self._busy = threading.Lock()
        self._alone = 0  # loops to go without helpers
        self._serve, self._lead = _functions()
        self._wakers = [threading.Event() for _ in range(threads - 1)]
        for index in range(threads - 1):
            threading.Thread(
                target=self._help, args=(index,), name=f"team-{index}", daemon=True
            ).start()

    def run(self, kernel: int, rows: int, arguments: tuple[int, ...], groups: int) -> bool:
        """Runs `kernel` over `rows` of so many groups; False if it is better done alone."""
        if not self._busy.acquire(blocking=False):
            return False
        try:
            if self._alone:
                self._alone -= 1
                return False
            pieces = PIECES_A_THREAD * (len(self._wakers) + 1)
            step = max(1, min(-(-rows // pieces), PIECE_GROUPS // groups))
            pieces = -(-rows // step)
            self._job[self._code.KERNEL :] = [kernel, rows, step, *arguments]
            for waker in self._wakers:
                waker.set()
            if self._lead(self._address, pieces) > LONG_WAIT:
                self._alone = LOOPS_ALONE
        finally:
            self._busy.release()
        return True

    def _help(self, index: int) -> None:
        waker = self._wakers[index]
        while True:
            waker.wait()
            waker.clear()
            self._serve(self._address, TURNS)


def assemble(threads: int) -> None:
    """Makes this thread's compute `threads` wide: torch's operations, and the loops' team.

    To be the first call of torch in a compute thread: set later, or elsewhere, torch starts a
    second team of its own and burns several times the CPU.
    """
    torch.set_num_threads(threads)
    _teams[:] = [_team(threads)]


def team() -> Team | None:
    """The team that was assembled last; None where there is one thread."""
    return _teams[0]


@contextmanager
def alone() -> Iterator[None]:
    """torch works in the calling thread only: its operations are short, the loops have the team."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_teams: list[Team | None] = [None]  # of the process, as its cores are


@cache
def _team(threads: int) -> Team | None:
    return Team(threads) if threads > 1 and find_spec("llvmlite") is not None else None


@cache
def _functions() -> tuple[Any, Any]:
    from runtime.compute import team_code
    from runtime.compute.machine_code import Module

    module = Module()
    team_code.serve_kernel(module.code)
    team_code.lead_kernel(module.code)
    return (
        module.function("serve", ctypes.c_int64, ctypes.c_int64),
        module.function("lead", ctypes.c_int64, ctypes.c_int64, returns=ctypes.c_int64),
    )
