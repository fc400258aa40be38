"""The header of a safetensors file: which tensors it holds, and where their bytes lie.

The file begins with the header's length in eight bytes, then a JSON object: a name, a type, a
shape and the first and last byte of each tensor, counted from the header's end. It is not trusted.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadModelFile
from runtime.formats.gguf import GGMLType, TensorInfo
from runtime.formats.mapped_file import MappedFile

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 1 << 24  # a tensor takes 150 bytes: room for 100,000
MAX_TENSORS: Final = 1 << 16
MAX_DIMS: Final = 8
TYPES: Final[Mapping[str, GGMLType]] = {
    "F32": GGMLType.F32,
    "F16": GGMLType.F16,
    "BF16": GGMLType.BF16,
}


class SafetensorsHeader:
    """`tensors` are those of a type that we read; `unreadable` the others, and their types."""

    def __init__(
        self, tensors: dict[str, TensorInfo], unreadable: dict[str, str], size_bytes: int
    ) -> None:
        self.tensors = tensors
        self.unreadable = unreadable
        self.size_bytes = size_bytes  # everything before the tensors


def read_header(file: MappedFile) -> SafetensorsHeader:
    """Raises BadModelFile for a header that is damaged, or of another format."""
    if file.size_bytes < LENGTH_BYTES:
        raise _damaged(file, f"it has {file.size_bytes} bytes")
    (length,) = struct.unpack("<Q", file.bytes(0, LENGTH_BYTES).tobytes())
    if length > min(file.size_bytes - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise _damaged(file, f"its header claims {length} bytes")
    entries = _entries(file, file.bytes(LENGTH_BYTES, length).tobytes())
    start = LENGTH_BYTES + length
    tensors: dict[str, TensorInfo] = {}
    unreadable: dict[str, str] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        kind, shape, first, last = _checked(file, name, entry, file.size_bytes - start)
        spans.append((first, last, name))
        if kind not in TYPES or not shape:
            unreadable[name] = kind if shape else f"{kind} without a shape"
            continue
        info = TensorInfo(name, shape, TYPES[kind], start + first, last - first)
        if math.prod(shape) * info.type.block_bytes != info.size_bytes:
            raise _damaged(file, f"tensor {name!r:.100} of {list(shape)} has {last - first} bytes")
        tensors[name] = info
    _check_apart(file, sorted(spans))
    return SafetensorsHeader(tensors, unreadable, start)


def _entries(file: MappedFile, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is no JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _damaged(file, "its header is no JSON object")
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise _damaged(file, f"it names {len(entries)} tensors; at most {MAX_TENSORS} are possible")
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _checked(
    file: MappedFile, name: str, entry: Any, room: int
) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first and last byte of one entry."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [first, last]}:
            numbers = (*shape, first, last)
            if all(type(n) is int and n >= 0 for n in numbers) and len(shape) <= MAX_DIMS:
                if 0 not in shape and first <= last <= room:
                    return kind, tuple(shape), first, last
                if last > room:
                    raise _damaged(
                        file, f"tensor {name!r:.100} ends {last - room} bytes behind its end"
                    )
    raise _damaged(file, f"tensor {name!r:.100} is described by {entry!r:.200}")


def _check_apart(file: MappedFile, spans: list[tuple[int, int, str]]) -> None:
    end = 0
    for first, last, name in spans:
        if first < end:
            raise _damaged(file, f"tensor {name!r:.100} overlaps the one before it")
        end = last


def _damaged(file: MappedFile, what: str) -> BadModelFile:
    return BadModelFile(
        f"{file.path} is damaged or no safetensors file: {what}; copy or download it again"
    )
