"""A linear map whose weights stay as compact in memory as the chosen precision allows."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.plan import Span
from runtime.compute import compiled, kernels
from runtime.compute.matrix import (
    BLOCKS,
    GROUP,
    Matrix,
    as_bf16,
    as_blocks,
    as_codes,
    codes_bytes,
    fits,
    in_parts,
)
from runtime.compute.packed import pack, product
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU, runs_loops
from runtime.formats.gguf import Bytes, GGMLType
from runtime.formats.quantize import dequantise

BF16_BYTES = 2
# Weights turned into fp32 at once for a matrix product: 16 MB, whatever the size of the matrix.
SCRATCH_WEIGHTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows [R, columns] of a matrix, as a file stores them."""

    raw: Bytes
    type: GGMLType
    rows: int


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a matrix a map takes as its inputs, where it has not all of them.

    A file's blocks, and weights that share a scale, are not cut: parts bring all of theirs.
    """

    whole: int  # of the matrix
    used: Span
    brought: Span  # by the parts; `used` and what is beside it

    @property
    def beside(self) -> tuple[int, int]:
        """How many are brought before and behind those that are used."""
        return self.used.first - self.brought.first, self.brought.last - self.used.last


class Linear(nn.Module):
    """x [.., columns] -> x @ W.T + bias [.., rows]. Made empty; `fill` brings the weights to the
    torch device that it was made on.
    """

    def __init__(self, rows: int, columns: int, *, bias: bool = False) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.device = torch.get_default_device()
        self.weight: nn.Parameter | None = None  # [rows, columns] fp32, packed, or bf16, or else:
        self.matrices: tuple[Matrix, ...] = ()  # rows of each, one below the other
        self.beside = (0, 0)  # columns of the matrices that have no inputs, before and behind
        self.bias = (
            nn.Parameter(torch.zeros(rows, dtype=torch.float32), requires_grad=False)
            if bias
            else None
        )

    def fill(
        self, parts: Sequence[Part], precision: Precision, columns: Columns | None = None
    ) -> None:
        """Takes the rows of all parts, in their order; `columns` says which of them, if not all.

        It is held as the whole matrix would be, and the same numbers come out.
        """
        assert sum(part.rows for part in parts) == self.rows, "a map is filled whole"
        if columns is None:
            every = Span(0, self.columns)
            columns = Columns(self.columns, every, every)
        assert len(columns.used) == self.columns, "each input has a column"
        if _is_compact(columns.whole, precision, self.device):
            self.beside, width = columns.beside, len(columns.brought)
            self.matrices = tuple(_matrix(part, width, precision) for part in _joined(parts))
            return
        dtype = _dtype(precision, self.device)
        weight = torch.empty(self.rows, self.columns, dtype=dtype, device=self.device)
        first = 0
        for part in parts:
            _write(part, weight[first : first + part.rows], columns.beside)
            first += part.rows
        if runs_loops(self.device) and dtype is torch.float32:
            weight = pack(weight)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            if self.weight.dtype is x.dtype:
                return product(x, self.weight, self.bias)
            out = F.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
            return out if self.bias is None else out.add_(self.bias)
        flat = x.reshape(-1, self.columns)
        if any(self.beside):
            flat = F.pad(flat, self.beside)
        is_few = compiled.available() and len(flat) <= kernels.MAX_ROWS
        out = self._few(flat) if is_few else self._many(flat)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.rows)

    def _few(self, x: Tensor) -> Tensor:
        """A few rows [S, K]: the weights are read once, and turned into fp32 on the way."""
        x = x.contiguous()
        out = torch.empty(x.shape[0], self.rows)
        first = 0
        for matrix in self.matrices:
            kernels.dot(x, matrix, out, first)
            first += matrix.rows
        return out

    def _many(self, x: Tensor) -> Tensor:
        """Many rows [S, K]: the weights written out as fp32, slice by slice, for torch."""
        width = x.shape[1]
        if self.rows * width <= SCRATCH_WEIGHTS:
            (weights,) = self._slices(self.rows)
            return F.linear(x, weights)
        out, first = torch.empty(x.shape[0], self.rows), 0
        for weights in self._slices(max(1, SCRATCH_WEIGHTS // width)):
            out[:, first : first + len(weights)] = F.linear(x, weights)
            first += len(weights)
        return out

    def _slices(self, step: int) -> Iterator[Tensor]:
        """The weights in fp32, at most `step` rows at a time; each holds until the next."""
        width = self.matrices[0].columns
        if step >= self.rows:
            weights, first = _scratch(self.rows, width), 0
            for matrix in self.matrices:
                _write_floats(matrix, weights[first : first + matrix.rows])
                first += matrix.rows
            yield weights
        else:
            for matrix in self.matrices:
                for first in range(0, matrix.rows, step):
                    part = matrix.part(first, min(matrix.rows, first + step))
                    weights = _scratch(part.rows, width)
                    _write_floats(part, weights)
                    yield weights


def column_unit(
    whole: int, ggml_type: GGMLType, precision: Precision, device: torch.device = CPU
) -> int:
    """At which multiples columns are cut, of matrices with `whole` columns: what is between two of
    them is held together.
    """
    if _is_compact(whole, precision, device):
        return math.lcm(GROUP, ggml_type.block_weights)
    return 1


def held_bytes(
    rows: int,
    columns: int,
    ggml_type: GGMLType,
    precision: Precision,
    device: torch.device = CPU,
    *,
    whole: int | None = None,
) -> int:
    """What `rows` rows of weights take in a device's memory that the file stores as this type.

    `columns` may be whole units of a matrix with `whole` columns.
    """
    if not _is_compact(whole or columns, precision, device):
        return _dtype(precision, device).itemsize * rows * columns
    if precision is Precision.BF16:
        return BF16_BYTES * rows * columns
    if ggml_type in BLOCKS and kernels.reads_blocks():
        return rows * columns // ggml_type.block_weights * ggml_type.block_bytes
    return codes_bytes(ggml_type, rows, columns)


def _is_compact(columns: int, precision: Precision, device: torch.device) -> bool:
    if not runs_loops(device):
        return False
    if precision is Precision.BF16:
        return fits(columns) and compiled.available()
    return fits(columns) and precision is Precision.INT8


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Of weights that torch multiplies as they are."""
    is_exact = precision is Precision.FP32 or runs_loops(device)
    return torch.float32 if is_exact else torch.bfloat16


def _write(part: Part, place: Tensor, beside: tuple[int, int]) -> None:
    """A part's rows into their place, of whatever type and device, without what is beside them."""
    if place.device == CPU and place.dtype is torch.float32 and not any(beside):
        dequantise(part.raw, part.type, place.shape, place)
        return
    before, behind = beside
    rows, columns = place.shape
    brought = before + columns + behind
    for some, floats in in_parts(part.raw, part.type, rows, brought):
        place[some] = floats[:, before : before + columns]


def _joined(parts: Sequence[Part]) -> Iterator[Part]:
    """Neighbours whose blocks are alike as one: one loop over all of their rows."""
    for kind, alike in groupby(parts, key=lambda part: part.type):
        several = list(alike)
        if kind in BLOCKS and len(several) > 1:
            raw = np.concatenate([part.raw for part in several])
            yield Part(raw, kind, sum(part.rows for part in several))
        else:
            yield from several


def _matrix(part: Part, columns: int, precision: Precision) -> Matrix:
    if precision is Precision.BF16:
        return as_bf16(part.raw, part.type, part.rows, columns)
    if part.type in BLOCKS and kernels.reads_blocks():
        return as_blocks(part.raw, part.type, part.rows, columns)
    return as_codes(part.raw, part.type, part.rows, columns)


def _scratch(rows: int, columns: int) -> Tensor:
    """Room for weights in fp32, of this thread: new memory each time would cost its page faults."""
    size = max(rows * columns, SCRATCH_WEIGHTS)
    if getattr(_of_thread, "scratch", None) is None or _of_thread.scratch.numel() < size:
        with torch.inference_mode(False):  # or nobody else of the thread could write to it
            _of_thread.scratch = torch.empty(size)
    room: Tensor = _of_thread.scratch[: rows * columns]
    return room.view(rows, columns)


_of_thread = threading.local()


def _write_floats(matrix: Matrix, out: Tensor) -> None:
    if compiled.available():
        kernels.floats(matrix, out)
    else:
        out.copy_(matrix.floats())
