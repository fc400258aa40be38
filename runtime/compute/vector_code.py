"""What the loops are written with, in LLVM's language: types, vectors, loops, arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

BYTE, HALF, FLOAT, INT16, INT32, INT64 = (
    ir.IntType(8),
    ir.HalfType(),
    ir.FloatType(),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
)
BYTES, FLOATS, WORDS = BYTE.as_pointer(), FLOAT.as_pointer(), INT64.as_pointer()
CONTRACT = ("contract",)  # a product and a sum may become one instruction; nothing is reordered

# e ** x = 2 ** n * e ** f, with |f| <= ln(2) / 2: the eighth term of the series is below 1e-8.
EXP_TERMS = 7
LN2_HIGH, LN2_LOW = 0.693359375, math.log(2) - 0.693359375  # n * LN2_HIGH is exact


def kernel(
    module: ir.Module, kinds: Sequence[ir.Type]
) -> tuple[ir.IRBuilder, list[ir.Value], ir.Value, ir.Value]:
    """void kernel(words, first, last): does the rows [first, last).

    Every kernel looks so, that a team may share the rows of any: its own arguments, of these
    `kinds`, are words of 8 bytes. Returns the builder, those arguments, first and last.
    """
    kind = ir.FunctionType(ir.VoidType(), [WORDS, INT64, INT64])
    function = ir.Function(module, kind, "kernel")
    words, first, last = function.args
    b = ir.IRBuilder(function.append_basic_block())
    return b, [argument(b, words, index, kind) for index, kind in enumerate(kinds)], first, last


def argument(b: ir.IRBuilder, words: ir.Value, index: int, kind: ir.Type) -> ir.Value:
    """Word `index` as this kind: an integer, a pointer, or the bits of a float."""
    word = b.load(b.gep(words, [integer(index)]))
    if kind is INT64:
        return word
    if kind is FLOAT:
        return b.bitcast(b.trunc(word, INT32), FLOAT)
    return b.inttoptr(word, kind)


@contextmanager
def loop(b: ir.IRBuilder, first: ir.Value, last: ir.Value, step: int) -> Iterator[ir.Value]:
    """for index in range(first, last, step)"""
    function = b.function
    before, head, body, end = b.block, *(function.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(INT64)
    index.add_incoming(first, before)
    b.cbranch(b.icmp_signed("<", index, last), body, end)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, integer(step)), b.block)
    b.branch(head)
    b.position_at_end(end)


def integer(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def same(value: float, kind: ir.VectorType) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def load(b: ir.IRBuilder, start: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    return b.load(b.bitcast(b.gep(start, [index]), kind.as_pointer()), align=1)


def store(b: ir.IRBuilder, value: ir.Value, start: ir.Value, index: ir.Value) -> None:
    b.store(value, b.bitcast(b.gep(start, [index]), value.type.as_pointer()), align=1)


def floats_of(b: ir.IRBuilder, codes: ir.Value, lanes: int) -> ir.Value:
    return b.sitofp(b.sext(codes, ir.VectorType(INT32, lanes)), ir.VectorType(FLOAT, lanes))


def spread(b: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """The value in every lane."""
    vector = ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined)
    one = b.insert_element(vector, value, ir.Constant(INT32, 0))
    return b.shuffle_vector(one, vector, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def total(b: ir.IRBuilder, vector: ir.Value, lanes: int) -> ir.Value:
    """All lanes added, by halves."""
    while lanes > 1:
        half = lanes // 2
        kind = ir.VectorType(INT32, half)
        low = b.shuffle_vector(vector, vector, ir.Constant(kind, list(range(half))))
        high = b.shuffle_vector(vector, vector, ir.Constant(kind, list(range(half, lanes))))
        vector, lanes = b.fadd(low, high), half
    return b.extract_element(vector, ir.Constant(INT32, 0))


def product_sum(b: ir.IRBuilder, x: ir.Value, y: ir.Value, more: ir.Value) -> ir.Value:
    """x * y + more, in one instruction where there is one."""
    return b.fadd(b.fmul(x, y, flags=CONTRACT), more, flags=CONTRACT)


def exponential(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e ** x in each lane, to within one unit in the last place; x is cut to [-87, 88]."""
    kind = x.type
    x = call(b, "llvm.minnum", call(b, "llvm.maxnum", x, same(-87.0, kind)), same(88.0, kind))
    n = call(b, "llvm.rint", b.fmul(x, same(1 / math.log(2), kind)))
    f = product_sum(b, n, same(-LN2_HIGH, kind), x)
    f = product_sum(b, n, same(-LN2_LOW, kind), f)
    power = same(1 / math.factorial(EXP_TERMS), kind)
    for term in reversed(range(EXP_TERMS)):
        power = product_sum(b, power, f, same(1 / math.factorial(term), kind))
    whole = ir.VectorType(INT32, kind.count)
    exponent = b.shl(b.add(b.fptosi(n, whole), same(127, whole)), same(23, whole))
    return b.fmul(power, b.bitcast(exponent, kind))


def call(b: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    """An intrinsic that takes and gives values of one type, floats or vectors of them."""
    kind = values[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    full, module = f"{name}.{suffix}", b.function.module
    function = module.globals.get(full)
    if function is None:
        function = ir.Function(module, ir.FunctionType(kind, [kind] * len(values)), full)
    return b.call(function, list(values))


def prefetch(b: ir.IRBuilder, place: ir.Value, ahead_bytes: int) -> None:
    """A hint, so many bytes beyond `place`: an address past the end does no harm."""
    name, flag = "llvm.prefetch.p0", INT32
    hint = b.function.module.globals.get(name)
    if hint is None:
        kind = ir.FunctionType(ir.VoidType(), [BYTES, flag, flag, flag])
        hint = ir.Function(b.function.module, kind, name)
    read, keep, data = (ir.Constant(flag, value) for value in (0, 3, 1))
    b.call(hint, [b.gep(place, [integer(ahead_bytes)]), read, keep, data])
