"""How the weights of a row become fp32 in registers, for each form that they are held in.

In LLVM's language, a group of weights at a time. Blocks of a GGUF file are read as they are:
`runtime.formats.quantize` says what is in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from llvmlite import ir

from runtime.compute.matrix import Form
from runtime.compute.vector_code import (
    BYTE,
    CONTRACT,
    FLOAT,
    HALF,
    INT16,
    INT32,
    floats_of,
    integer,
    load,
    prefetch,
    same,
    spread,
)

# How far ahead of the row in hand its bytes are asked for: a matrix is read once, from memory, and
# the processor's own guess ends with each short row. 11 GB/s instead of 6 on one core.
AHEAD_BYTES = 2048

BLOCK_BYTES: Final = {
    Form.Q8_0: 34,
    Form.Q5_0: 22,
    Form.Q4_0: 18,
    Form.BF16: 64,
    Form.Q4_K: 144,
    Form.Q5_K: 176,
    Form.Q6_K: 210,
}


class Row(ABC):
    """One row of a matrix; made once, then asked for each of its groups."""

    @abstractmethod
    def open(self, b: ir.IRBuilder, group: ir.Value) -> None:
        """Goes to a group: what its weights share is read."""

    @abstractmethod
    def weights(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        """[lanes] fp32: the weights of the group from `offset` on."""


class CodesRow(Row):
    def __init__(
        self,
        b: ir.IRBuilder,
        lanes: int,
        group_weights: int,
        start: ir.Value,
        groups: ir.Value,
        row: ir.Value,
        scales: ir.Value,
        minima: ir.Value | None,
    ) -> None:
        self._lanes, self._size = lanes, group_weights
        self._codes = b.gep(start, [b.mul(row, b.mul(groups, integer(group_weights)))])
        first = [b.mul(row, groups)]
        self._scales = b.gep(scales, first)
        self._minima = None if minima is None else b.gep(minima, first)

    def open(self, b: ir.IRBuilder, group: ir.Value) -> None:
        self._place = b.mul(group, integer(self._size))
        prefetch(b, b.gep(self._codes, [self._place]), AHEAD_BYTES)
        self._scale = spread(b, b.load(b.gep(self._scales, [group])), self._lanes)
        self._less = None
        if self._minima is not None:
            self._less = spread(b, b.load(b.gep(self._minima, [group])), self._lanes)

    def weights(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        place = b.add(self._place, integer(offset))
        codes = load(b, self._codes, place, ir.VectorType(BYTE, self._lanes))
        w = b.fmul(floats_of(b, codes, self._lanes), self._scale, flags=CONTRACT)
        return w if self._less is None else b.fsub(w, self._less, flags=CONTRACT)


class BlockRow(Row):
    """Blocks of 32 weights, as the file has them: first a half-precision scale, then codes."""

    def __init__(
        self,
        b: ir.IRBuilder,
        lanes: int,
        form: Form,
        start: ir.Value,
        groups: ir.Value,
        row: ir.Value,
    ) -> None:
        self._lanes, self._form = lanes, form
        self._bytes = integer(BLOCK_BYTES[form])
        self._start = b.gep(start, [b.mul(row, b.mul(groups, self._bytes))])

    def open(self, b: ir.IRBuilder, group: ir.Value) -> None:
        self._block = b.gep(self._start, [b.mul(group, self._bytes)])
        self._loaded: dict[int, ir.Value] = {}
        prefetch(b, self._block, AHEAD_BYTES)
        if self._form is Form.BF16:
            return
        half = b.load(b.bitcast(self._block, HALF.as_pointer()), align=1)
        self._scale = spread(b, b.fpext(half, FLOAT), self._lanes)
        if self._form is Form.Q5_0:
            self._fifths = b.load(
                b.bitcast(b.gep(self._block, [integer(2)]), INT32.as_pointer()), align=1
            )

    def weights(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        if self._form is Form.BF16:
            return self._bf16(b, offset)
        floats = b.sitofp(self._codes(b, offset), ir.VectorType(FLOAT, self._lanes))
        return b.fmul(floats, self._scale, flags=CONTRACT)

    def _codes(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        """[lanes] int32"""
        wide = ir.VectorType(INT32, self._lanes)
        if self._form is Form.Q8_0:
            place = integer(2 + offset)
            return b.sext(load(b, self._block, place, ir.VectorType(BYTE, self._lanes)), wide)
        packed = self._packed(b, offset % 16)
        halves = b.and_(packed, same(15, wide)) if offset < 16 else b.lshr(packed, same(4, wide))
        if self._form is Form.Q4_0:
            return b.sub(halves, same(8, wide))
        bits = b.trunc(b.lshr(self._fifths, ir.Constant(INT32, offset)), ir.IntType(self._lanes))
        has_fifth = b.bitcast(bits, ir.VectorType(ir.IntType(1), self._lanes))
        return b.select(has_fifth, halves, b.sub(halves, same(16, wide)))

    def _packed(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        """[lanes] int32, a byte in each, of the 16 that hold the lower halves of the first 16
        weights and, above them, those of the other 16. Loaded once for both.
        """
        if offset not in self._loaded:
            first = 6 if self._form is Form.Q5_0 else 2
            packed = load(b, self._block, integer(first + offset), ir.VectorType(BYTE, self._lanes))
            self._loaded[offset] = b.zext(packed, ir.VectorType(INT32, self._lanes))
        return self._loaded[offset]

    def _bf16(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        """The upper half of an fp32."""
        halves = load(b, self._block, integer(2 * offset), ir.VectorType(INT16, self._lanes))
        wide = ir.VectorType(INT32, self._lanes)
        shifted = b.shl(b.zext(halves, wide), same(16, wide))
        return b.bitcast(shifted, ir.VectorType(FLOAT, self._lanes))
