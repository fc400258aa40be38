"""What a block does between its products, in LLVM's language: one pass where torch takes several.

Rows are those of a step; each is computed in one fixed order, whatever stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from llvmlite import ir

from runtime.compute.kinds import Gate, Heads
from runtime.compute.vector_code import (
    FLOAT,
    FLOATS,
    INT64,
    call,
    exponential,
    integer,
    kernel,
    load,
    loop,
    product_sum,
    same,
    spread,
    store,
    total,
)


@dataclass(frozen=True, slots=True)
class _Norm:
    """RMS norm of rows of `width` numbers."""

    b: ir.IRBuilder
    lanes: int
    width: ir.Value
    eps: ir.Value

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(FLOAT, self.lanes)

    def squares(self) -> ir.Value:
        """Where a sum of squares is gathered, zero."""
        place = self.b.alloca(self.vector)
        self.b.store(ir.Constant(self.vector, None), place)
        return place

    def add_square(self, squares: ir.Value, value: ir.Value) -> None:
        b = self.b
        b.store(product_sum(b, value, value, b.load(squares)), squares)

    def factor(self, squares: ir.Value) -> ir.Value:
        """1 / sqrt(mean + eps), in every lane; the place is zero again."""
        b = self.b
        mean = b.fdiv(total(b, b.load(squares), self.lanes), b.uitofp(self.width, FLOAT))
        root = call(b, "llvm.sqrt", b.fadd(mean, self.eps))
        b.store(ir.Constant(self.vector, None), squares)
        return spread(b, b.fdiv(ir.Constant(FLOAT, 1.0), root), self.lanes)


def norm_kernel(module: ir.Module, lanes: int) -> None:
    """out[r] = x[r] / rms(x[r]) * weight; of (x, weight, out, width, eps)."""
    kinds = (FLOATS, FLOATS, FLOATS, INT64, FLOAT)
    b, (x, weight, out, width, eps), first, last = kernel(module, kinds)
    norm = _Norm(b, lanes, width, eps)
    squares = norm.squares()
    with loop(b, first, last, 1) as row:
        start = b.mul(row, width)
        with loop(b, integer(0), width, lanes) as k:
            norm.add_square(squares, load(b, x, b.add(start, k), norm.vector))
        factor = norm.factor(squares)
        with loop(b, integer(0), width, lanes) as k:
            scaled = b.fmul(load(b, x, b.add(start, k), norm.vector), factor)
            store(b, b.fmul(scaled, load(b, weight, k, norm.vector)), out, b.add(start, k))
    b.ret_void()


def residual_kernel(module: ir.Module, lanes: int, post: bool, then: bool) -> None:
    """sum[r] = hidden[r] + post(added[r]), and normed[r] = then(sum[r]).

    Of (hidden, added, post_weight, then_weight, sum, normed, width, eps). Without `post`, `added`
    is added as it is; without `then`, there is no `normed`.
    """
    kinds = (FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, INT64, FLOAT)
    b, arguments, first, last = kernel(module, kinds)
    hidden, added, post_weight, then_weight, sums, normed, width, eps = arguments
    norm = _Norm(b, lanes, width, eps)
    squares = norm.squares()
    with loop(b, first, last, 1) as row:
        start, factor = b.mul(row, width), None
        if post:
            with loop(b, integer(0), width, lanes) as k:
                norm.add_square(squares, load(b, added, b.add(start, k), norm.vector))
            factor = norm.factor(squares)
        with loop(b, integer(0), width, lanes) as k:
            place = b.add(start, k)
            more = load(b, added, place, norm.vector)
            if factor is not None:
                more = b.fmul(b.fmul(more, factor), load(b, post_weight, k, norm.vector))
            value = b.fadd(load(b, hidden, place, norm.vector), more)
            store(b, value, sums, place)
            if then:
                norm.add_square(squares, value)
        if then:
            factor = norm.factor(squares)
            with loop(b, integer(0), width, lanes) as k:
                place = b.add(start, k)
                scaled = b.fmul(load(b, sums, place, norm.vector), factor)
                store(b, b.fmul(scaled, load(b, then_weight, k, norm.vector)), normed, place)
    b.ret_void()


def gate_kernel(module: ir.Module, lanes: int, gate: Gate) -> None:
    """out[r] = gate(x[r, :width]) * x[r, width:]; of (x, out, width), x [rows, 2 * width]."""
    b, (x, out, width), first, last = kernel(module, (FLOATS, FLOATS, INT64))
    vector = ir.VectorType(FLOAT, lanes)
    with loop(b, first, last, 1) as row:
        start = b.mul(row, b.mul(width, integer(2)))
        with loop(b, integer(0), width, lanes) as k:
            value = load(b, x, b.add(start, k), vector)
            up = load(b, x, b.add(b.add(start, width), k), vector)
            store(b, b.fmul(_gated(b, value, gate), up), out, b.add(b.mul(row, width), k))
    b.ret_void()


def _gated(b: ir.IRBuilder, x: ir.Value, gate: Gate) -> ir.Value:
    """x * sigmoid(s). With s = 2 u, sigmoid is (1 + tanh(u)) / 2, and loses nothing near -1."""
    s = x
    if gate is Gate.GELU_TANH:
        square = b.fmul(x, x)
        inner = product_sum(b, square, same(0.044715, x.type), same(1.0, x.type))
        s = b.fmul(b.fmul(x, inner), same(2 * 0.7978845608028654, x.type))  # 2 sqrt(2 / pi)
    one = same(1.0, x.type)
    return b.fdiv(x, b.fadd(one, exponential(b, b.fsub(ir.Constant(x.type, None), s))))


def heads_kernel(module: ir.Module, lanes: int, heads: Heads) -> None:
    """Rows of queries, keys and values [rows, H + 2 K, D] to [H + 2 K, rows, D].

    Of (qkv, query_weight, key_weight, cos, sin, out, rows, eps): queries and keys are normed by
    head, then each pair (i, i + D/2) is turned by its row's angles, cos and sin [rows, D].
    """
    kinds = (FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, INT64, FLOAT)
    b, (qkv, *weights, cos, sin, out, rows, eps), first, last = kernel(module, kinds)
    norm = _Norm(b, lanes, integer(heads.dim), eps)
    squares = norm.squares()
    edges = (0, heads.queries, heads.queries + heads.keys, heads.queries + 2 * heads.keys)
    with loop(b, first, last, 1) as row:
        angles = b.mul(row, integer(heads.dim))
        for weight, (start, end) in zip((*weights, None), pairwise(edges), strict=True):
            with loop(b, integer(start), integer(end), 1) as head:
                place = b.add(b.mul(row, integer(edges[-1])), head)
                source = b.gep(qkv, [b.mul(place, integer(heads.dim))])
                target = b.gep(out, [b.mul(b.add(b.mul(head, rows), row), integer(heads.dim))])
                if weight is None:
                    _copy(norm, source, target)
                    continue
                factor = None
                if heads.normed:
                    with loop(b, integer(0), integer(heads.dim), lanes) as k:
                        norm.add_square(squares, load(b, source, k, norm.vector))
                    factor = norm.factor(squares)
                turn = (b.gep(cos, [angles]), b.gep(sin, [angles])) if heads.turned else None
                _turn(norm, source, target, factor, weight, turn, heads.dim // 2)
    b.ret_void()


def _copy(norm: _Norm, source: ir.Value, target: ir.Value) -> None:
    b = norm.b
    with loop(b, integer(0), norm.width, norm.lanes) as k:
        store(b, load(b, source, k, norm.vector), target, k)


def _turn(
    norm: _Norm,
    source: ir.Value,
    target: ir.Value,
    factor: ir.Value | None,
    weight: ir.Value,
    turn: tuple[ir.Value, ir.Value] | None,
    half: int,
) -> None:
    """One head, normed with `factor` and turned, both halves at once."""
    b = norm.b
    with loop(b, integer(0), integer(half), norm.lanes) as k:
        places = (k, b.add(k, integer(half)))
        low, high = values = [load(b, source, place, norm.vector) for place in places]
        if factor is not None:
            low, high = values = [
                b.fmul(b.fmul(value, factor), load(b, weight, place, norm.vector))
                for value, place in zip(values, places, strict=True)
            ]
        if turn is not None:
            cosines, sines = ([load(b, t, place, norm.vector) for place in places] for t in turn)
            values = [
                product_sum(b, high, sines[0], b.fmul(low, cosines[0])),
                product_sum(b, low, sines[1], b.fmul(high, cosines[1])),
            ]
        for value, place in zip(values, places, strict=True):
            store(b, value, target, place)
