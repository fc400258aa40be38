"""Quantised weights to fp32: each ggml block format as a record and the formula that reads it.

A block holds a run of weights of one row: small integers and the scales they share. The order of
the multiplications is ggml's own, so that the results are equal to its bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from runtime.gguf import GGMLType

CHUNK_WEIGHTS: Final = 1 << 18  # at once: 1 MB of fp32 stays in the cache, scratch below 8 MB

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Blocks = npt.NDArray[Any]  # of one of the records below
Decoder = Callable[[Blocks, Floats], None]  # [N] blocks -> [N, weights of a block]


def dequantise(
    raw: Bytes, ggml_type: GGMLType, shape: tuple[int, ...], out: torch.Tensor | None = None
) -> torch.Tensor:
    """The tensor in fp32, written to `out` (contiguous, of `shape`) where one is given.

    `raw` is what `GGUFFile.raw` returns for a tensor of this type and shape.
    """
    if out is None:
        out = torch.empty(shape, dtype=torch.float32)
    assert (out.shape, out.dtype, out.is_contiguous()) == (shape, torch.float32, True)
    record, decode = _FORMATS[ggml_type]
    blocks = raw.view(record)  # [N]
    assert blocks.size * ggml_type.block_weights == math.prod(shape)
    rows = out.detach().numpy().reshape(-1, ggml_type.block_weights)  # [N, weights of a block]
    chunk = CHUNK_WEIGHTS // ggml_type.block_weights
    # Only a damaged file holds infinite scales; their NaN is reported when logits are sampled.
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, blocks.size, chunk):
            decode(blocks[first : first + chunk], rows[first : first + chunk])
    return out


def dequantise_rows(
    raw: Bytes, ggml_type: GGMLType, shape: tuple[int, ...], row_ids: torch.Tensor
) -> torch.Tensor:
    """Some rows [R, D] of a tensor [rows, D], in fp32; touches nothing else of the file.

    `row_ids` [R] are integers from 0 to rows - 1; others raise IndexError.
    """
    rows, width = shape
    ids = row_ids.numpy()
    if ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise IndexError(f"rows {ids.min()}..{ids.max()} of a tensor of {rows} rows")
    chosen = raw.reshape(rows, -1)[ids]  # [R, bytes of a row]
    return dequantise(chosen.reshape(-1), ggml_type, (ids.size, width))


_SCALE = ("d", "<f2")
_Q4_0: Final = np.dtype([_SCALE, ("q", "u1", (16,))])
_Q5_0: Final = np.dtype([_SCALE, ("high", "<u4"), ("q", "u1", (16,))])
_Q8_0: Final = np.dtype([_SCALE, ("q", "i1", (32,))])
_Q4_K: Final = np.dtype([_SCALE, ("dmin", "<f2"), ("scales", "u1", (12,)), ("q", "u1", (4, 32))])
_Q5_K: Final = np.dtype(
    [_SCALE, ("dmin", "<f2"), ("scales", "u1", (12,)), ("high", "u1", (32,)), ("q", "u1", (4, 32))]
)
_Q6_K: Final = np.dtype(
    [("low", "u1", (2, 64)), ("high", "u1", (2, 32)), ("scales", "i1", (16,)), _SCALE]
)
_BITS_32: Final = np.arange(32, dtype=np.uint32)


def _copy(blocks: Blocks, out: Floats) -> None:
    out[:, 0] = blocks


def _bf16(blocks: Blocks, out: Floats) -> None:
    # A bfloat16 is the upper half of an fp32.
    np.left_shift(blocks, 16, out=out.view(np.uint32)[:, 0], dtype=np.uint32)


def _q4_0(blocks: Blocks, out: Floats) -> None:
    _nibbles(blocks["q"], out)
    out -= 8
    out *= _column(blocks["d"])


def _q5_0(blocks: Blocks, out: Floats) -> None:
    q = np.empty(out.shape, np.uint8)
    _nibbles(blocks["q"], q)
    fifth = (blocks["high"][:, None] >> _BITS_32) & 1  # [N, 32]
    q |= fifth.astype(np.uint8) << 4
    np.subtract(q, 16, out=out, dtype=np.float32)
    out *= _column(blocks["d"])


def _q8_0(blocks: Blocks, out: Floats) -> None:
    np.multiply(blocks["q"], _column(blocks["d"]), out=out)


def _q4_k(blocks: Blocks, out: Floats) -> None:
    _scale_k(blocks, _nibbles_k(blocks["q"]), out)


def _q5_k(blocks: Blocks, out: Floats) -> None:
    q = _nibbles_k(blocks["q"])
    for group in range(8):  # bit g of the 32 high bytes belongs to the g-th group of 32 weights
        q[:, group] |= (blocks["high"] >> group & 1) << 4
    _scale_k(blocks, q, out)


def _q6_k(blocks: Blocks, out: Floats) -> None:
    q = np.empty((len(blocks), 2, 4, 32), np.uint8)  # two halves of 128 weights
    low = blocks["low"].reshape(-1, 2, 2, 32)
    np.bitwise_and(low, 15, out=q[:, :, :2])
    np.right_shift(low, 4, out=q[:, :, 2:])
    for group in range(4):
        q[:, :, group] |= (blocks["high"] >> 2 * group & 3) << 4
    scales = _column(blocks["d"]) * blocks["scales"].astype(np.float32)  # [N, 16]
    grouped = out.reshape(-1, 16, 16)
    np.subtract(q.reshape(-1, 16, 16), 32, out=grouped, dtype=np.float32)
    grouped *= scales[:, :, None]


def _scale_k(blocks: Blocks, q: Bytes, out: Floats) -> None:
    """Eight groups of 32 weights, each with a scale and a minimum of six bits."""
    packed = blocks["scales"]  # [N, 12]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)  # [N, 8]
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4], axis=1)  # [N, 8]
    grouped = out.reshape(-1, 8, 32)
    np.multiply(q, (_column(blocks["d"]) * scales.astype(np.float32))[:, :, None], out=grouped)
    grouped -= (_column(blocks["dmin"]) * minima.astype(np.float32))[:, :, None]


def _nibbles(packed: Bytes, out: npt.NDArray[Any]) -> None:
    """The low halves of all bytes, then the high halves: [N, 16] -> [N, 32]."""
    half = packed.shape[1]
    np.bitwise_and(packed, 15, out=out[:, :half], casting="unsafe", dtype=np.uint8)
    np.right_shift(packed, 4, out=out[:, half:], casting="unsafe", dtype=np.uint8)


def _nibbles_k(packed: Bytes) -> Bytes:
    """Each 32 bytes hold 32 low, then 32 high halves: [N, 4, 32] -> [N, 8, 32]."""
    q = np.empty((len(packed), 4, 2, 32), np.uint8)
    np.bitwise_and(packed, 15, out=q[:, :, 0])
    np.right_shift(packed, 4, out=q[:, :, 1])
    return q.reshape(-1, 8, 32)


def _column(halves: npt.NDArray[np.float16]) -> Floats:
    return halves.astype(np.float32)[:, None]  # [N, 1]


_FORMATS: Final[Mapping[GGMLType, tuple[np.dtype[Any], Decoder]]] = {
    GGMLType.F32: (np.dtype("<f4"), _copy),
    GGMLType.F16: (np.dtype("<f2"), _copy),
    GGMLType.BF16: (np.dtype("<u2"), _bf16),
    GGMLType.Q4_0: (_Q4_0, _q4_0),
    GGMLType.Q5_0: (_Q5_0, _q5_0),
    GGMLType.Q8_0: (_Q8_0, _q8_0),
    GGMLType.Q4_K: (_Q4_K, _q4_k),
    GGMLType.Q5_K: (_Q5_K, _q5_k),
    GGMLType.Q6_K: (_Q6_K, _q6_k),
}
