"""Writes small GGUF files for tests: whatever a dict of metadata and a dict of tensors say."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.formats.gguf import GGMLType


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in the file; `shape` in torch's order."""

    type: GGMLType
    shape: tuple[int, ...]
    raw: bytes


def f32(array: np.ndarray) -> Stored:
    return Stored(GGMLType.F32, array.shape, array.astype("<f4").tobytes())


def f16(array: np.ndarray) -> Stored:
    return Stored(GGMLType.F16, array.shape, array.astype("<f2").tobytes())


def q8_0(array: np.ndarray) -> Stored:
    """Rounds to 8 bits with a scale for each 32 weights; the last dim is a multiple of 32."""
    blocks = array.astype(np.float32).reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype("<f2")
    divisors = np.where(scales == 0, 1, scales).astype(np.float32)
    rounded = np.clip(np.rint(blocks / divisors), -127, 127).astype(np.int8)
    raw = np.concatenate([scales.view(np.uint8), rounded.view(np.uint8)], axis=1).tobytes()
    return Stored(GGMLType.Q8_0, array.shape, raw)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Writes the file and returns its path. An int is stored as u32, a float as f32."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    head += b"".join(string(key) + typed(value) for key, value in metadata.items())
    data = bytearray()
    for name, tensor in tensors.items():
        head += tensor_info(name, tensor.shape, tensor.type, len(data))
        data += tensor.raw + bytes(-len(tensor.raw) % alignment)
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


def tensor_info(name: str, shape: Sequence[int], number: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return string(name) + dims + struct.pack("<IQ", number, offset)


def string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: Any) -> bytes:
    """The type number and the value."""
    match value:
        case bool():
            return struct.pack("<IB", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + string(value)
        case list():
            return struct.pack("<I", 9) + array(value)
    raise TypeError(f"no GGUF type for {type(value).__name__}")


def array(items: list[Any]) -> bytes:
    count = len(items)
    match items[0] if items else 0:
        case bool():
            return struct.pack(f"<IQ{count}B", 7, count, *items)
        case int():
            return struct.pack(f"<IQ{count}i", 5, count, *items)
        case float():
            return struct.pack(f"<IQ{count}f", 6, count, *items)
        case str():
            return struct.pack("<IQ", 8, count) + b"".join(map(string, items))
        case list():
            return struct.pack("<IQ", 9, count) + b"".join(map(array, items))
    raise TypeError(f"no GGUF type for a list of {type(items[0]).__name__}")
