"""Products with compact weights in compiled loops, called on torch tensors."""

from __future__ import annotations

from functools import cache
from typing import Final

from torch import Tensor

from runtime.compute.compiled import Loop, available, lanes, machine_code
from runtime.compute.matrix import Form, Matrix

# With so many rows the loops took a third of torch's time for a product with fp32 weights; for more
# the weights are written out for torch, which is fastest with hundreds. The best border between
# the two was not looked for.
MAX_ROWS: Final = 16


@cache
def reads_blocks() -> bool:
    """Whether they read a file's blocks as they are, whose scales are in half precision."""
    return available() and bool({"f16c", "neon"} & machine_code().features())


def dot(x: Tensor, matrix: Matrix, out: Tensor, first: int) -> None:
    """x [S, K] @ matrix.T into out[:, first : first + matrix.rows]; S is small, out [S, N] fp32."""
    most = _most_columns()
    for start in range(0, x.shape[0], most):
        columns = min(most, x.shape[0] - start)
        source = x.data_ptr() + 4 * start * x.shape[1]
        place = out.data_ptr() + 4 * (start * out.shape[1] + first)
        arguments = (*matrix.addresses, source, place, matrix.groups, out.shape[1])
        loop = _loop("dot", columns, matrix.form, matrix.group)
        loop.run(matrix.rows, matrix.rows * matrix.columns, *arguments)


def floats(matrix: Matrix, out: Tensor) -> None:
    """The matrix in fp32 into `out` [rows, columns], contiguous."""
    loop = _loop("floats", 1, matrix.form, matrix.group)
    arguments = (*matrix.addresses, 0, out.data_ptr(), matrix.groups, 0)
    loop.run(matrix.rows, matrix.rows * matrix.columns, *arguments)


@cache
def _loop(kind: str, columns: int, form: Form, group: int) -> Loop:
    from runtime.compute.dot_code import Tile, dot_kernel, floats_kernel

    build = dot_kernel if kind == "dot" else floats_kernel
    return Loop(lambda module: build(module, Tile(lanes(), columns, form, group)))


@cache
def _most_columns() -> int:
    """As many sums as registers hold beside the weights."""
    return 8 if lanes() == 16 else 4
