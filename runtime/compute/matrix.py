"""A matrix of weights, held as compactly as its precision allows.

Blocks of a file that the compiled loops can read are kept as they are, though in memory of our own:
it comes in large pages, and reading a mapped file takes half as long again. Without those loops
they become bytes as codes, w = code * scale - minimum, so nothing is lost; and weights that a file
holds as floats are rounded to 8 bits, in groups of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.formats.gguf import Bytes, GGMLType
from runtime.formats.quantize import codes_of, dequantise

GROUP: Final = 32  # weights that share a scale, unless the file's format has shorter groups
ROUND_BYTES: Final = 1 << 22  # of floats that are rounded at once: scratch stays in the cache


class Form(StrEnum):
    """How the weights lie in memory."""

    CODES = "codes"  # bytes, and the scales of their groups apart
    CODES_LESS = "codes_less"  # the same, with minima that are taken off
    Q8_0 = "q8_0"  # blocks of a file, as they are
    Q5_0 = "q5_0"
    Q4_0 = "q4_0"
    Q4_K = "q4_k"
    Q5_K = "q5_k"
    Q6_K = "q6_k"
    BF16 = "bf16"  # the upper halves of fp32


BLOCKS: Final = {
    GGMLType.Q8_0: Form.Q8_0,
    GGMLType.Q5_0: Form.Q5_0,
    GGMLType.Q4_0: Form.Q4_0,
    GGMLType.Q4_K: Form.Q4_K,
    GGMLType.Q5_K: Form.Q5_K,
    GGMLType.Q6_K: Form.Q6_K,
}


@dataclass(frozen=True, slots=True)
class Matrix:
    """[rows, columns]; made by `as_blocks` or `as_codes`."""

    form: Form
    rows: int
    columns: int
    group: int  # weights that the loops take at once: a block, or those that share a scale
    data: npt.NDArray[Any]  # a row of bytes each: blocks, or codes [rows, columns] int8
    scales: npt.NDArray[np.float32] | None  # [rows, columns / group]
    minima: npt.NDArray[np.float32] | None  # the same, what is taken off each weight
    addresses: tuple[int, int, int]  # of data, scales, minima

    @property
    def groups(self) -> int:
        """In a row."""
        return self.columns // self.group

    def part(self, first: int, last: int) -> Matrix:
        """Rows [first, last), nothing copied."""
        scales = None if self.scales is None else self.scales[first:last]
        minima = None if self.minima is None else self.minima[first:last]
        return _made(self.form, self.columns, self.group, self.data[first:last], scales, minima)

    def floats(self) -> Tensor:
        """All of it in fp32, without compiled loops. Only for codes."""
        assert self.scales is not None, "blocks are kept only where loops can read them"
        grouped = torch.from_numpy(self.data).float().view(self.rows, -1, self.group)
        grouped *= torch.from_numpy(self.scales)[:, :, None]
        if self.minima is not None:
            grouped -= torch.from_numpy(self.minima)[:, :, None]
        return grouped.view(self.rows, self.columns)


def fits(columns: int) -> bool:
    """Whether rows of so many weights fall into whole groups."""
    return columns % GROUP == 0


def as_blocks(raw: Bytes, ggml_type: GGMLType, rows: int, columns: int) -> Matrix:
    """The file's own blocks, of a type in BLOCKS."""
    group = ggml_type.block_weights
    return _made(BLOCKS[ggml_type], columns, group, raw.reshape(rows, -1), None, None)


def as_codes(raw: Bytes, ggml_type: GGMLType, rows: int, columns: int) -> Matrix:
    """Bytes and scales, from a file's tensor of any type."""
    group = _group(ggml_type)
    codes = np.empty((rows, columns), np.int8)
    found = codes_of(raw, ggml_type, codes)
    if found is None:
        return _made(Form.CODES, columns, group, codes, _rounded(raw, ggml_type, codes), None)
    scales, minima = (None if each is None else each.reshape(rows, -1) for each in found)
    form = Form.CODES if minima is None else Form.CODES_LESS
    return _made(form, columns, group, codes, scales, minima)


def in_parts(
    raw: Bytes, ggml_type: GGMLType, rows: int, columns: int
) -> Iterator[tuple[slice, Tensor]]:
    """The weights in fp32, some rows at a time, and which these are."""
    step = max(1, ROUND_BYTES // (4 * columns))
    by_row = raw.reshape(rows, -1)
    for first in range(0, rows, step):
        part = by_row[first : first + step]
        floats = dequantise(part.reshape(-1), ggml_type, (len(part), columns))
        yield slice(first, first + len(part)), floats


def as_bf16(raw: Bytes, ggml_type: GGMLType, rows: int, columns: int) -> Matrix:
    """The upper halves of fp32, from a file's tensor of any type."""
    halves = np.empty((rows, columns), np.int16)
    for part, floats in in_parts(raw, ggml_type, rows, columns):
        halves[part] = floats.bfloat16().view(torch.int16).numpy()
    return _made(Form.BF16, columns, GROUP, halves, None, None)


def codes_bytes(ggml_type: GGMLType, rows: int, columns: int) -> int:
    """What `as_codes` takes in memory."""
    kinds = 2 if ggml_type in (GGMLType.Q4_K, GGMLType.Q5_K) else 1
    return rows * columns + 4 * kinds * (rows * columns // _group(ggml_type))


def _group(ggml_type: GGMLType) -> int:
    return 16 if ggml_type is GGMLType.Q6_K else GROUP


def _rounded(
    raw: Bytes, ggml_type: GGMLType, codes: npt.NDArray[np.int8]
) -> npt.NDArray[np.float32]:
    """Floats to codes: symmetric, the largest of a group becomes 127. Returns the scales."""
    rows, columns = codes.shape
    scales = np.empty((rows, columns // GROUP), np.float32)
    for part, floats in in_parts(raw, ggml_type, rows, columns):
        grouped = floats.view(len(floats), -1, GROUP)
        largest = grouped.abs().amax(dim=2, keepdim=True)  # [count, K / GROUP, 1]
        steps = grouped / (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
        scales[part] = (largest / 127)[:, :, 0].numpy()
        codes[part] = steps.round_().view(floats.shape).to(torch.int8).numpy()
    return scales


def _made(
    form: Form,
    columns: int,
    group: int,
    data: npt.NDArray[Any],
    scales: npt.NDArray[np.float32] | None,
    minima: npt.NDArray[np.float32] | None,
) -> Matrix:
    arrays = (data, scales, minima)
    addresses = tuple(0 if each is None else each.ctypes.data for each in arrays)
    return Matrix(form, len(data), columns, group, data, scales, minima, addresses)  # type: ignore[arg-type]
