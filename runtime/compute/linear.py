"""A linear map whose weights stay as compact in memory as the chosen precision allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.compute import compiled, kernels
from runtime.compute.matrix import BLOCKS, Matrix, as_bf16, as_blocks, as_codes, codes_bytes, fits
from runtime.compute.precision import Precision
from runtime.formats.gguf import Bytes, GGMLType
from runtime.formats.quantize import dequantise

FP32_BYTES, BF16_BYTES = 4, 2
# Weights turned into fp32 at once for a matrix product: 16 MB, whatever the size of the matrix.
SCRATCH_WEIGHTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows [R, columns] of a matrix, as a file stores them."""

    raw: Bytes
    type: GGMLType
    rows: int


class Linear(nn.Module):
    """x [.., columns] -> x @ W.T + bias [.., rows]. Made empty; `fill` brings the weights."""

    def __init__(self, rows: int, columns: int, *, bias: bool = False) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.weight: nn.Parameter | None = None  # [rows, columns] fp32, or else:
        self.matrices: tuple[Matrix, ...] = ()  # rows of each, one below the other
        self.bias = (
            nn.Parameter(torch.zeros(rows, dtype=torch.float32), requires_grad=False)
            if bias
            else None
        )

    def fill(self, parts: Sequence[Part], precision: Precision) -> None:
        """Takes the rows of all parts, in their order."""
        assert sum(part.rows for part in parts) == self.rows, "a map is filled whole"
        if _is_compact(self.columns, precision):
            self.matrices = tuple(_matrix(part, self.columns, precision) for part in _joined(parts))
            return
        weight, first = torch.empty(self.rows, self.columns), 0
        for part in parts:
            place = weight[first : first + part.rows]
            dequantise(part.raw, part.type, place.shape, place)
            first += part.rows
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, self.columns)
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
        if self.rows * self.columns <= SCRATCH_WEIGHTS:
            (weights,) = self._slices(self.rows)
            return F.linear(x, weights)
        out, first = torch.empty(x.shape[0], self.rows), 0
        for weights in self._slices(max(1, SCRATCH_WEIGHTS // self.columns)):
            out[:, first : first + len(weights)] = F.linear(x, weights)
            first += len(weights)
        return out

    def _slices(self, step: int) -> Iterator[Tensor]:
        """The weights in fp32, at most `step` rows at a time; each holds until the next."""
        if step >= self.rows:
            weights, first = _scratch(self.rows, self.columns), 0
            for matrix in self.matrices:
                _write_floats(matrix, weights[first : first + matrix.rows])
                first += matrix.rows
            yield weights
        else:
            for matrix in self.matrices:
                for first in range(0, matrix.rows, step):
                    part = matrix.part(first, min(matrix.rows, first + step))
                    weights = _scratch(part.rows, self.columns)
                    _write_floats(part, weights)
                    yield weights


def held_bytes(rows: int, columns: int, ggml_type: GGMLType, precision: Precision) -> int:
    """What `rows` rows of weights take in memory that the file stores as this type."""
    if not _is_compact(columns, precision):
        return FP32_BYTES * rows * columns
    if precision is Precision.BF16:
        return BF16_BYTES * rows * columns
    if ggml_type in BLOCKS and kernels.reads_blocks():
        return rows * columns // ggml_type.block_weights * ggml_type.block_bytes
    return codes_bytes(ggml_type, rows, columns)


def _is_compact(columns: int, precision: Precision) -> bool:
    if precision is Precision.BF16:
        return fits(columns) and compiled.available()
    return fits(columns) and precision is Precision.INT8


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
