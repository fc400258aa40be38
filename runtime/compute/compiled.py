"""A compiled loop over rows, called with numbers; by all threads of the team, or by one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from runtime.compute.team import HEADER_WORDS, team

# A loop over fewer weights or numbers (some 10 us) is done before a helper has seen it.
MIN_SHARED_COST: Final = 1 << 17
_WORD_BYTES: Final = 8


@cache
def available() -> bool:
    """Whether this device can compile loops."""
    return find_spec("llvmlite") is not None


class Loop:
    """Compiled when it is made, in some milliseconds; calling it lets other threads run."""

    def __init__(self, build: Callable[[Any], None]) -> None:
        """`build` writes a `vector_code.kernel` into an LLVM module."""
        module = machine_code().Module()
        build(module.code)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._call = module.function("kernel", pointer, number, number)
        self._address = module.address("kernel")

    def run(self, rows: int, cost: int, *arguments: int) -> None:
        """Over rows [0, rows), which have `cost` weights or numbers in all.

        Arguments are integers, addresses, or what `bits` makes of a float.
        """
        job = (ctypes.c_int64 * (HEADER_WORDS + len(arguments)))(*(0,) * HEADER_WORDS, *arguments)
        if cost >= MIN_SHARED_COST:
            helpers = team()
            if helpers is not None and helpers.run(self._address, rows, job, cost):
                return
        self._call(ctypes.addressof(job) + HEADER_WORDS * _WORD_BYTES, 0, rows)


def bits(value: float) -> int:
    """A float as a loop's argument."""
    return ctypes.c_uint32.from_buffer(ctypes.c_float(value)).value


@cache
def lanes() -> int:
    """Floats in a register."""
    return 16 if "avx512f" in machine_code().features() else 8


def machine_code() -> Any:
    """Imported when it is first needed: on a device without llvmlite it never is."""
    from runtime.compute import machine_code

    return machine_code
