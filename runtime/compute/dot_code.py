"""Machine code for the inner loops, written once in LLVM's language and compiled at start.

One loop serves every shape: rows of a matrix are turned into fp32 in registers (`weight_code`), and
either multiplied with several vectors at once or written out. It compiles in milliseconds for
whatever processor it finds, and needs no compiler on the device.

Each (row, vector) pair is summed in one fixed order whatever else is computed beside it, so that a
conversation's tokens do not depend on who shares its step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from runtime.compute.kquant_code import PLACES, SuperBlockRow
from runtime.compute.matrix import Form
from runtime.compute.vector_code import (
    BYTES,
    FLOAT,
    FLOATS,
    INT64,
    integer,
    kernel,
    load,
    loop,
    product_sum,
    store,
    total,
)
from runtime.compute.weight_code import BlockRow, CodesRow, Row

# What both kernels take: weights, scales, minima, x, out; groups, out_stride.
ARGUMENTS = (BYTES, FLOATS, FLOATS, FLOATS, FLOATS, INT64, INT64)

# Each sum is kept in two registers, by turns: an addition takes four cycles, and two may start in
# each.
SUMS_EACH = 2

Sums = list[list[ir.Value]]  # [column][which of the two]


@dataclass(frozen=True, slots=True)
class Tile:
    """What one turn of the loop works on: a group of a row, and some vectors."""

    lanes: int  # floats in a register
    columns: int  # vectors multiplied at once
    form: Form
    group: int  # weights that share a scale


def dot_kernel(module: ir.Module, tile: Tile) -> None:
    """out[m, row] = sum of w[row, k] * x[m, k], for rows [first, last).

    Of (weights, scales, minima, x, out, groups, out_stride): the matrix [N, K] with K / group
    groups in a row, x [columns, K], out [columns, out_stride].
    """
    b, (*matrix, x, out, groups, stride), first, last = kernel(module, ARGUMENTS)
    width = b.mul(groups, integer(tile.group))  # K
    vector = ir.VectorType(FLOAT, tile.lanes)
    with loop(b, first, last, 1) as row:
        weights = _row_of(b, tile.form, tile.lanes, tile.group, row, groups, tuple(matrix))

        def turn(group: ir.Value, sums: Sums) -> Sums:
            weights.open(b, group)
            for index, offset in enumerate(range(0, tile.group, tile.lanes)):
                k = b.add(b.mul(group, integer(tile.group)), integer(offset))
                w, which = weights.weights(b, offset), index % SUMS_EACH
                for m in range(tile.columns):
                    place = b.add(b.mul(width, integer(m)), k)
                    sums[m][which] = product_sum(b, w, load(b, x, place, vector), sums[m][which])
            return sums

        zero = ir.Constant(vector, None)
        begun = [[zero] * SUMS_EACH for _ in range(tile.columns)]
        for m, (even, odd) in enumerate(_accumulate(b, groups, begun, turn)):
            place = b.add(b.mul(stride, integer(m)), row)
            b.store(total(b, b.fadd(even, odd), tile.lanes), b.gep(out, [place]))
    b.ret_void()


def floats_kernel(module: ir.Module, tile: Tile) -> None:
    """out[row, k] = w[row, k] for rows [first, last), of `dot_kernel`'s arguments; out [N, K]."""
    b, (*matrix, _, out, groups, _), first, last = kernel(module, ARGUMENTS)
    width = b.mul(groups, integer(tile.group))
    with loop(b, first, last, 1) as row:
        each = _row_of(b, tile.form, tile.lanes, tile.group, row, groups, tuple(matrix))
        start = b.mul(row, width)
        with loop(b, integer(0), groups, 1) as group:
            each.open(b, group)
            for offset in range(0, tile.group, tile.lanes):
                k = b.add(b.mul(group, integer(tile.group)), integer(offset))
                store(b, each.weights(b, offset), out, b.add(start, k))
    b.ret_void()


def _accumulate(
    b: ir.IRBuilder, count: ir.Value, sums: Sums, turn: Callable[[ir.Value, Sums], Sums]
) -> Sums:
    """Runs `turn` for each index below `count` (at least once), the sums kept in registers."""
    before, body = b.block, b.function.append_basic_block()
    b.branch(body)
    b.position_at_end(body)
    index = b.phi(INT64)
    index.add_incoming(integer(0), before)
    phis = [[b.phi(value.type) for value in row] for row in sums]
    for row, begun in zip(phis, sums, strict=True):
        for phi, value in zip(row, begun, strict=True):
            phi.add_incoming(value, before)
    done = turn(index, [list(row) for row in phis])
    following = b.add(index, integer(1))
    index.add_incoming(following, b.block)
    for row, ended in zip(phis, done, strict=True):
        for phi, value in zip(row, ended, strict=True):
            phi.add_incoming(value, b.block)
    end = b.function.append_basic_block()
    b.cbranch(b.icmp_signed("<", following, count), body, end)
    b.position_at_end(end)
    return done


def _row_of(
    b: ir.IRBuilder,
    form: Form,
    lanes: int,
    group: int,
    row: ir.Value,
    groups: ir.Value,
    arguments: tuple[ir.Value, ...],
) -> Row:
    """`arguments` are where the weights, the scales and the minima begin."""
    start, scales, minima = arguments
    if form in (Form.CODES, Form.CODES_LESS):
        less = minima if form is Form.CODES_LESS else None
        return CodesRow(b, lanes, group, start, groups, row, scales, less)
    blocks = SuperBlockRow if form in PLACES else BlockRow
    return blocks(b, lanes, form, start, groups, row)
