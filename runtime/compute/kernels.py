"""The compiled inner loops, called on torch tensors. Where llvmlite is missing, there are none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor

from runtime.compute.matrix import Form, Matrix
from runtime.compute.team import team

# With so many rows the loops took a third of torch's time for a product with fp32 weights; for more
# the weights are written out for torch, which is fastest with hundreds. The best border between
# the two was not looked for.
MAX_ROWS: Final = 16
# A loop shorter than this (some 10 us) is done before a helper has seen it.
MIN_SHARED_GROUPS: Final = 1 << 12
_GROUPS = 5  # the place of the number of groups among a kernel's arguments


@cache
def available() -> bool:
    """Whether this device can compile them."""
    return find_spec("llvmlite") is not None


@cache
def reads_blocks() -> bool:
    """Whether they read a file's blocks as they are, whose scales are in half precision."""
    if not available():
        return False
    features = machine_code().features()
    return bool({"f16c", "neon"} & features)


def dot(x: Tensor, matrix: Matrix, out: Tensor, first: int) -> None:
    """x [S, K] @ matrix.T into out[:, first : first + matrix.rows]; S is small, out [S, N] fp32."""
    most = _most_columns()
    for start in range(0, x.shape[0], most):
        part, columns = x[start : start + most], min(most, x.shape[0] - start)
        place = out.data_ptr() + 4 * (start * out.shape[1] + first)
        arguments = (*matrix.addresses, part.data_ptr(), place, matrix.groups, out.shape[1])
        _loop("dot", columns, matrix.form, matrix.group).run(matrix.rows, arguments)


def floats(matrix: Matrix, out: Tensor) -> None:
    """The matrix in fp32 into `out` [rows, columns], contiguous."""
    loop = _loop("floats", 1, matrix.form, matrix.group)
    loop.run(matrix.rows, (*matrix.addresses, 0, out.data_ptr(), matrix.groups, 0))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, which `can_norm` has allowed."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    _norm()(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, width, eps)
    return out


def can_norm(width: int) -> bool:
    """Whether `rms_norm` takes rows of this width."""
    return available() and width % _lanes() == 0


@dataclass(frozen=True, slots=True)
class _Loop:
    """A compiled loop, by address for a team and as a function for one thread."""

    address: int
    call: Any

    def run(self, rows: int, arguments: tuple[int, ...]) -> None:
        """Over rows [0, rows), by all threads if it is worth it."""
        groups = arguments[_GROUPS]
        if rows * groups >= MIN_SHARED_GROUPS:
            helpers = team()
            if helpers is not None and helpers.run(self.address, rows, arguments, groups):
                return
        self.call(*arguments, 0, rows)


@cache
def _loop(kind: str, columns: int, form: Form, group: int) -> _Loop:
    """Compiled on its first use, in some milliseconds; calling it lets other threads run."""
    from runtime.compute.kernel_code import Tile, dot_kernel, floats_kernel

    module = machine_code().Module()
    build = dot_kernel if kind == "dot" else floats_kernel
    build(module.code, Tile(_lanes(), columns, form, group))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    call = module.function("kernel", *(pointer,) * 5, *(number,) * 4)
    return _Loop(module.address("kernel"), call)


@cache
def _norm() -> Any:
    from runtime.compute.norm_code import rms_kernel

    module = machine_code().Module()
    rms_kernel(module.code, _lanes())
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    return module.function("rms", *(pointer,) * 3, *(number,) * 2, ctypes.c_float)


@cache
def _most_columns() -> int:
    """As many sums as registers hold beside the weights."""
    return 8 if _lanes() == 16 else 4


@cache
def _lanes() -> int:
    return 16 if "avx512f" in machine_code().features() else 8


def machine_code() -> Any:
    """Imported when it is first needed: on a device without llvmlite it never is."""
    from runtime.compute import machine_code

    return machine_code
