"""How the weights of llama.cpp's K formats become fp32 in registers: blocks of 256, as in the file.

Each holds eight groups of 32 weights (Q4_K, Q5_K), or sixteen of 16 (Q6_K), whose scales are whole
numbers that share a half-precision one. `runtime.formats.quantize` says the same in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llvmlite import ir

from runtime.compute.matrix import Form
from runtime.compute.vector_code import (
    BYTE,
    CONTRACT,
    FLOAT,
    HALF,
    INT32,
    integer,
    load,
    prefetch,
    same,
    spread,
)
from runtime.compute.weight_code import AHEAD_BYTES, BLOCK_BYTES, BlockRow

LINE_BYTES: Final = 64  # of a processor's cache: a block has three or four of them


@dataclass(frozen=True, slots=True)
class Places:
    """Where things stand in a block, in bytes from its start; None: the format has none."""

    scale: int  # in half precision, for the scales of the groups
    minimum: int | None  # the same, for their minima
    groups: int  # their scales
    low: int  # the lower four bits of the weights
    high: int | None  # the rest


PLACES: Final = {
    Form.Q4_K: Places(scale=0, minimum=2, groups=4, low=16, high=None),
    Form.Q5_K: Places(scale=0, minimum=2, groups=4, low=48, high=16),
    Form.Q6_K: Places(scale=208, minimum=None, groups=192, low=0, high=128),
}


class SuperBlockRow(BlockRow):
    """A row of such blocks. The group that it is asked for is a whole block."""

    def open(self, b: ir.IRBuilder, group: ir.Value) -> None:
        self._block = b.gep(self._start, [b.mul(group, self._bytes)])
        self._loaded: dict[int, ir.Value] = {}
        self._places = PLACES[self._form]
        self._shared: dict[int, tuple[ir.Value, ir.Value | None]] = {}
        for line in range(0, BLOCK_BYTES[self._form], LINE_BYTES):
            prefetch(b, b.gep(self._block, [integer(line)]), AHEAD_BYTES)
        self._scale = self._half(b, self._places.scale)
        self._minimum = None
        if self._places.minimum is not None:
            self._minimum = self._half(b, self._places.minimum)

    def weights(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        codes = self._six_bits(b, offset) if self._minimum is None else self._five_bits(b, offset)
        floats = b.sitofp(codes, ir.VectorType(FLOAT, self._lanes))
        group = offset // (16 if self._minimum is None else 32)
        if group not in self._shared:
            self._shared[group] = self._of_group(b, group)
        scale, less = self._shared[group]
        w = b.fmul(floats, scale, flags=CONTRACT)
        return w if less is None else b.fsub(w, less, flags=CONTRACT)

    def _five_bits(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        """[lanes] int32 of Q4_K or Q5_K: 64 weights share 32 bytes, whose high halves come last."""
        chunk, inner = divmod(offset, 64)
        packed = self._packed(b, self._places.low + 32 * chunk + inner % 32)
        code = self._nibble(b, packed, upper=inner >= 32)
        if self._places.high is None:
            return code
        fifths = self._packed(b, self._places.high + offset % 32)  # bit g belongs to group g
        return b.or_(code, self._bits(b, fifths, offset // 32, 1))

    def _six_bits(self, b: ir.IRBuilder, offset: int) -> ir.Value:
        """[lanes] int32 of Q6_K: in each half, 128 weights as four runs of 32."""
        half, inner = divmod(offset, 128)
        run, place = divmod(inner, 32)
        packed = self._packed(b, self._places.low + 64 * half + 32 * (run % 2) + place)
        assert self._places.high is not None, "six bits are four and two"
        rest = self._packed(b, self._places.high + 32 * half + place)
        code = b.or_(self._nibble(b, packed, upper=run >= 2), self._bits(b, rest, 2 * run, 2))
        return b.sub(code, same(32, code.type))

    def _of_group(self, b: ir.IRBuilder, group: int) -> tuple[ir.Value, ir.Value | None]:
        """The scale of a group and its minimum, in every lane."""
        if self._minimum is None:
            whole = b.sext(self._byte(b, self._places.groups + group), INT32)
            return self._times(b, self._scale, whole), None
        first = self._places.groups
        if group < 4:
            scale = b.and_(self._wide(b, first + group), ir.Constant(INT32, 63))
            least = b.and_(self._wide(b, first + 4 + group), ir.Constant(INT32, 63))
        else:  # four bits of each stand together, the upper two with those of the first groups
            both = self._wide(b, first + 4 + group)
            above, above_least = (self._wide(b, first + place + group) for place in (-4, 0))
            scale = b.or_(b.and_(both, ir.Constant(INT32, 15)), self._upper_two(b, above))
            least = b.or_(b.lshr(both, ir.Constant(INT32, 4)), self._upper_two(b, above_least))
        return self._times(b, self._scale, scale), self._times(b, self._minimum, least)

    def _upper_two(self, b: ir.IRBuilder, byte: ir.Value) -> ir.Value:
        return b.shl(b.lshr(byte, ir.Constant(INT32, 6)), ir.Constant(INT32, 4))

    def _times(self, b: ir.IRBuilder, scale: ir.Value, whole: ir.Value) -> ir.Value:
        return spread(b, b.fmul(scale, b.sitofp(whole, FLOAT)), self._lanes)

    def _half(self, b: ir.IRBuilder, place: int) -> ir.Value:
        pointer = b.bitcast(b.gep(self._block, [integer(place)]), HALF.as_pointer())
        return b.fpext(b.load(pointer, align=1), FLOAT)

    def _byte(self, b: ir.IRBuilder, place: int) -> ir.Value:
        return b.load(b.gep(self._block, [integer(place)]))

    def _wide(self, b: ir.IRBuilder, place: int) -> ir.Value:
        return b.zext(self._byte(b, place), INT32)

    def _packed(self, b: ir.IRBuilder, place: int) -> ir.Value:
        """[lanes] int32, a byte in each; loaded once for all that are in them."""
        if place not in self._loaded:
            packed = load(b, self._block, integer(place), ir.VectorType(BYTE, self._lanes))
            self._loaded[place] = b.zext(packed, ir.VectorType(INT32, self._lanes))
        return self._loaded[place]

    def _nibble(self, b: ir.IRBuilder, packed: ir.Value, *, upper: bool) -> ir.Value:
        return (
            b.lshr(packed, same(4, packed.type)) if upper else b.and_(packed, same(15, packed.type))
        )

    def _bits(self, b: ir.IRBuilder, packed: ir.Value, first: int, count: int) -> ir.Value:
        """`count` bits of each byte from `first` on, moved above the lower four."""
        mask = same(((1 << count) - 1) << first, packed.type)
        found = b.and_(packed, mask)
        if first < 4:
            return b.shl(found, same(4 - first, packed.type))
        return b.lshr(found, same(first - 4, packed.type)) if first > 4 else found
