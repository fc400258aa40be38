"""The block formats of a GGUF file: each as a record, and how its whole numbers are taken out.

A block holds a run of weights of one row: small whole numbers (codes) and the scales they share,
w = code * scale - minimum. The order of the operations is ggml's own, so that the results are
equal to its bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from runtime.formats.gguf import Bytes, GGMLType

CHUNK_WEIGHTS: Final = 1 << 18  # at once: 1 MB of fp32 stays in the cache, scratch below 8 MB

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]
Blocks = npt.NDArray[Any]  # of one of the records below
# [N] blocks -> codes [N, weights of a block], returning scales and minima [N, groups of a block]
Decoder = Callable[[Blocks, Codes], tuple[Floats, Floats | None]]


def dequantise(
    raw: Bytes, ggml_type: GGMLType, shape: tuple[int, ...], out: torch.Tensor | None = None
) -> torch.Tensor:
    """The tensor in fp32, written to `out` (contiguous, of `shape`) where one is given.

    `raw` is what `GGUFFile.raw` returns for a tensor of this type and shape.
    """
    if out is None:
        out = torch.empty(shape, dtype=torch.float32)
    assert (out.shape, out.dtype, out.is_contiguous()) == (shape, torch.float32, True)
    rows = out.detach().numpy().reshape(-1, ggml_type.block_weights)  # [N, weights of a block]
    if ggml_type in _FLOATS:
        _FLOATS[ggml_type](raw, rows)
        return out
    record, decode = _FORMATS[ggml_type]
    blocks = raw.view(record)  # [N]
    assert blocks.size * ggml_type.block_weights == math.prod(shape)
    chunk = CHUNK_WEIGHTS // ggml_type.block_weights
    codes = np.empty((min(chunk, blocks.size), ggml_type.block_weights), np.int8)
    # Only a damaged file holds infinite scales; their NaN is reported when logits are sampled.
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, blocks.size, chunk):
            part = blocks[first : first + chunk]
            scales, minima = decode(part, codes[: part.size])
            _multiply(codes[: part.size], scales, minima, rows[first : first + chunk])
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


def codes_of(raw: Bytes, ggml_type: GGMLType, codes: Codes) -> tuple[Floats, Floats | None] | None:
    """A quantised tensor's codes, into `codes` (contiguous, a tensor's weights in all).

    Returns its scales and minima, flat, a value for each group; None for a type that holds floats.
    """
    if ggml_type in _FLOATS:
        return None
    record, decode = _FORMATS[ggml_type]
    blocks = raw.view(record)
    into = codes.reshape(-1, ggml_type.block_weights)
    assert blocks.size == len(into)
    chunk = CHUNK_WEIGHTS // ggml_type.block_weights
    scales: list[Floats] = []
    minima: list[Floats] = []
    with np.errstate(invalid="ignore", over="ignore"):
        for first in range(0, blocks.size, chunk):
            found, taken_off = decode(blocks[first : first + chunk], into[first : first + chunk])
            scales.append(found.reshape(-1))
            if taken_off is not None:
                minima.append(taken_off.reshape(-1))
    return np.concatenate(scales), np.concatenate(minima) if minima else None


def _multiply(codes: Codes, scales: Floats, minima: Floats | None, out: Floats) -> None:
    grouped = out.reshape(*scales.shape, -1)  # [N, groups, weights of a group]
    np.multiply(codes.reshape(grouped.shape), scales[:, :, None], out=grouped)
    if minima is not None:
        grouped -= minima[:, :, None]


def _f32(raw: Bytes, out: Floats) -> None:
    out[:, 0] = raw.view("<f4")


def _f16(raw: Bytes, out: Floats) -> None:
    out[:, 0] = raw.view("<f2")


def _bf16(raw: Bytes, out: Floats) -> None:
    # A bfloat16 is the upper half of an fp32.
    np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32)[:, 0], dtype=np.uint32)


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


def _q4_0(blocks: Blocks, codes: Codes) -> tuple[Floats, None]:
    _nibbles(blocks["q"], codes.view(np.uint8))
    codes -= 8
    return _column(blocks["d"]), None


def _q5_0(blocks: Blocks, codes: Codes) -> tuple[Floats, None]:
    q = codes.view(np.uint8)
    _nibbles(blocks["q"], q)
    fifth = (blocks["high"][:, None] >> _BITS_32) & 1  # [N, 32]
    q |= fifth.astype(np.uint8) << 4
    codes -= 16
    return _column(blocks["d"]), None


def _q8_0(blocks: Blocks, codes: Codes) -> tuple[Floats, None]:
    codes[:] = blocks["q"]
    return _column(blocks["d"]), None


def _q4_k(blocks: Blocks, codes: Codes) -> tuple[Floats, Floats]:
    _nibbles_k(blocks["q"], codes.view(np.uint8))
    return _scales_k(blocks)


def _q5_k(blocks: Blocks, codes: Codes) -> tuple[Floats, Floats]:
    q = codes.view(np.uint8)
    _nibbles_k(blocks["q"], q)
    groups = q.reshape(-1, 8, 32)
    for group in range(8):  # bit g of the 32 high bytes belongs to the g-th group of 32 weights
        groups[:, group] |= (blocks["high"] >> group & 1) << 4
    return _scales_k(blocks)


def _q6_k(blocks: Blocks, codes: Codes) -> tuple[Floats, None]:
    q = codes.view(np.uint8).reshape(-1, 2, 4, 32)  # two halves of 128 weights
    low = blocks["low"].reshape(-1, 2, 2, 32)
    np.bitwise_and(low, 15, out=q[:, :, :2])
    np.right_shift(low, 4, out=q[:, :, 2:])
    for group in range(4):
        q[:, :, group] |= (blocks["high"] >> 2 * group & 3) << 4
    codes -= 32
    return _column(blocks["d"]) * blocks["scales"].astype(np.float32), None  # [N, 16]


def _scales_k(blocks: Blocks) -> tuple[Floats, Floats]:
    """Eight groups of 32 weights, each with a scale and a minimum of six bits: [N, 8] both."""
    packed = blocks["scales"]  # [N, 12]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6) << 4], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6) << 4], axis=1)
    return (
        _column(blocks["d"]) * scales.astype(np.float32),
        _column(blocks["dmin"]) * minima.astype(np.float32),
    )


def _nibbles(packed: Bytes, out: Bytes) -> None:
    """The low halves of all bytes, then the high halves: [N, 16] -> [N, 32]."""
    half = packed.shape[1]
    np.bitwise_and(packed, 15, out=out[:, :half])
    np.right_shift(packed, 4, out=out[:, half:])


def _nibbles_k(packed: Bytes, out: Bytes) -> None:
    """Each 32 bytes hold 32 low, then 32 high halves: [N, 4, 32] -> [N, 256]."""
    q = out.reshape(-1, 4, 2, 32)
    np.bitwise_and(packed, 15, out=q[:, :, 0])
    np.right_shift(packed, 4, out=q[:, :, 1])


def _column(halves: npt.NDArray[np.float16]) -> Floats:
    return halves.astype(np.float32)[:, None]  # [N, 1]


_FLOATS: Final[Mapping[GGMLType, Callable[[Bytes, Floats], None]]] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
}
_FORMATS: Final[Mapping[GGMLType, tuple[np.dtype[Any], Decoder]]] = {
    GGMLType.Q4_0: (_Q4_0, _q4_0),
    GGMLType.Q5_0: (_Q5_0, _q5_0),
    GGMLType.Q8_0: (_Q8_0, _q8_0),
    GGMLType.Q4_K: (_Q4_K, _q4_k),
    GGMLType.Q5_K: (_Q5_K, _q5_k),
    GGMLType.Q6_K: (_Q6_K, _q6_k),
}
