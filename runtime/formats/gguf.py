"""GGUF files, versions 2 and 3: metadata and a table of tensors, whose bytes stay in the file.

A file is not trusted. Every count is held against the bytes that are left before anything is
allocated for it, so that a lie costs nothing; the text of the error says which lie it was.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mesh.errors import BadModelFile, ModelNotFound, UnsupportedModel
from mesh.ids import ModelId
from runtime.formats.gguf_reader import MAX_METADATA_BYTES, HeaderReader

MAX_TENSORS: Final = 1 << 16  # the largest models have a few thousand
MAX_METADATA: Final = 1 << 14  # entries; real files have some dozens
MAX_DIMS: Final = 4
MIN_TENSOR_INFO_BYTES: Final = 8 + 4 + 8 + 4 + 8
MIN_METADATA_BYTES: Final = 8 + 4 + 1
FINGERPRINT_SAMPLE_BYTES: Final = 4096
COPY_BYTES: Final = 1 << 23  # of a file's pages at once

Bytes = npt.NDArray[np.uint8]


class GGMLType(IntEnum):
    """How a tensor's numbers are stored, numbered as in the file. Only what we can dequantise."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q5_0 = 6
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30

    @property
    def block_weights(self) -> int:
        """Weights that share one block; a row is a whole number of blocks."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        return _BLOCKS[self][1]


_BLOCKS: Final[Mapping[GGMLType, tuple[int, int]]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.BF16: (1, 2),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in the file. `shape` is in torch's order: the last dim is contiguous."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int  # bytes from the start of the file
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [offset, offset + size_bytes) of one of a model's files, by its name."""

    file: str
    offset: int
    size_bytes: int

    def start(self, size_bytes: int) -> FileRange:
        """The first of its bytes."""
        return FileRange(self.file, self.offset, min(self.size_bytes, size_bytes))


class GGUFFile:
    """An open GGUF file. Opening reads the header only; `raw` touches only the tensor asked for."""

    def __init__(
        self,
        path: Path,
        version: int,
        metadata: dict[str, Any],
        tensors: dict[str, TensorInfo],
        header_bytes: int,
        mapped: mmap.mmap,
    ) -> None:
        self.path = path
        self.version = version
        self.metadata = metadata
        self.tensors = tensors
        self.header_bytes = header_bytes  # everything before the tensors, padding included
        self.size_bytes = len(mapped)
        self.unreadable: Mapping[str, str] = {}  # a tensor of another type is refused when opened
        self._mapped: mmap.mmap | None = mapped

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Maps the file and reads its header.

        Raises ModelNotFound where there is no file, BadModelFile for one that is damaged or no
        GGUF, UnsupportedModel for a tensor type that we cannot dequantise. Not to be called for a
        file that is still being written: truncating a mapped file kills the process that reads it.
        """
        mapped = _map(path)
        reader = HeaderReader(mapped, str(path))
        version = _read_version(reader)
        tensor_count = reader.count("tensors", MIN_TENSOR_INFO_BYTES, MAX_TENSORS)
        metadata_count = reader.count("metadata entries", MIN_METADATA_BYTES, MAX_METADATA)
        metadata = _read_metadata(reader, metadata_count)
        alignment = _alignment(metadata, reader)
        tensors = [_read_tensor(reader) for _ in range(tensor_count)]
        header_bytes = -(-reader.position // alignment) * alignment
        placed = _placed(tensors, header_bytes, alignment, reader)
        _forget(mapped)
        return cls(path, version, metadata, placed, header_bytes, mapped)

    def raw(self, name: str) -> Bytes:
        """That tensor's bytes in the file, read-only and not copied. Raises BadModelFile."""
        info = self.tensors.get(name)
        if info is None:
            raise BadModelFile(f"{self.path} has no tensor {name!r}")
        return self.span(info.offset, info.size_bytes)

    def span(self, offset: int, size_bytes: int) -> Bytes:
        """Bytes of the file, read-only and not copied."""
        assert self._mapped is not None, "the file is closed"
        return np.frombuffer(self._mapped, np.uint8, count=size_bytes, offset=offset)

    def range_of(self, name: str) -> FileRange:
        """Where that tensor lies. Raises KeyError for one that is not there."""
        info = self.tensors[name]
        return FileRange(self.path.name, info.offset, info.size_bytes)

    def files(self) -> dict[str, int]:
        """The file's name, and its size in bytes."""
        return {self.path.name: self.size_bytes}

    def header_ranges(self) -> list[FileRange]:
        """What must be there for the file to open, and to be known by its fingerprint."""
        samples = [self.range_of(name).start(FINGERPRINT_SAMPLE_BYTES) for name in self.tensors]
        return [FileRange(self.path.name, 0, self.header_bytes), *samples]

    def fingerprint(self) -> ModelId:
        return fingerprint(self)

    def copy(self, name: str, first: int = 0, size_bytes: int | None = None) -> Bytes:
        """That tensor's bytes, or some of them, in memory of their own. Raises BadModelFile."""
        self.raw(name)
        assert self._mapped is not None, "the file is open, or `raw` would have said so"
        return copied(self._mapped, self.tensors[name], first, size_bytes)

    def close(self) -> None:
        """Lets go of the file; views handed out before stay valid and keep it mapped."""
        self._mapped = None


def copied(
    mapped: mmap.mmap, info: TensorInfo, first: int = 0, size_bytes: int | None = None
) -> Bytes:
    """A tensor's bytes from `first` on, all or so many; the file's pages are let go of on the way,
    so that no byte is held twice.
    """
    size_bytes = info.size_bytes - first if size_bytes is None else size_bytes
    assert 0 <= first <= first + size_bytes <= info.size_bytes, "no byte of another tensor"
    out, offset = np.empty(size_bytes, np.uint8), info.offset + first
    for start in range(0, size_bytes, COPY_BYTES):
        part = out[start : start + COPY_BYTES]
        part[:] = np.frombuffer(mapped, np.uint8, count=len(part), offset=offset + start)
        _forget(mapped)
    return out


def _forget(mapped: mmap.mmap) -> None:
    """What was read leaves this process's memory, where the system can be told; it stays in the
    system's cache.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def fingerprint(file: GGUFFile) -> ModelId:
    """SHA-256 over the header, the file's size, and the first 4 KiB of each tensor, in name order.

    The header alone is not enough: a fine-tune shares it with its base model, while training moves
    every tensor from its first row on. Hashing all of a 40 GB file would take a minute on each
    start of each device. So this tells models apart; it does not prove that no bit is damaged.
    """
    digest = hashlib.sha256(file.span(0, file.header_bytes).data)
    digest.update(struct.pack("<Q", file.size_bytes))
    for name in sorted(file.tensors):
        info = file.tensors[name]
        sample_bytes = min(info.size_bytes, FINGERPRINT_SAMPLE_BYTES)
        digest.update(file.span(info.offset, sample_bytes).data)
    return ModelId(digest.hexdigest())


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFound(f"there is no file {path}; check the path") from None
    except ValueError:
        raise BadModelFile(f"{path} is empty; copy or download it again") from None
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}") from None


def _read_version(reader: HeaderReader) -> int:
    magic = reader.take(4)
    if magic != b"GGUF":
        raise reader.error(f"a GGUF file begins with the bytes GGUF; this one with {magic!r}")
    version: int = reader.number("I")
    if version in (2, 3):
        return version
    if version in (2 << 24, 3 << 24):
        raise reader.error("it is big-endian; convert it to little-endian")
    raise reader.error(f"expected GGUF version 2 or 3, got {version}; convert the file anew")


def _read_metadata(reader: HeaderReader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.name("a metadata key")
        if key in metadata:
            raise reader.error(f"the metadata key {key!r} comes twice")
        metadata[key] = reader.value(key)
        if reader.position > MAX_METADATA_BYTES:
            raise reader.error(f"its metadata are larger than {MAX_METADATA_BYTES} bytes")
    return metadata


def _alignment(metadata: dict[str, Any], reader: HeaderReader) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is int and 8 <= alignment <= 1 << 16 and alignment.bit_count() == 1:
        return alignment
    raise reader.error(f"general.alignment is a power of two from 8 to 65536; got {alignment!r}")


def _read_tensor(reader: HeaderReader) -> TensorInfo:
    name = reader.name("a tensor's name")
    dims: int = reader.number("I")
    if not 1 <= dims <= MAX_DIMS:
        raise reader.error(f"tensor {name!r} has {dims} dimensions; 1 to {MAX_DIMS} are possible")
    shape = tuple(reversed([int(reader.number("Q")) for _ in range(dims)]))
    number: int = reader.number("I")
    offset: int = reader.number("Q")
    if number not in GGMLType.__members__.values():
        known = ", ".join(member.name for member in GGMLType)
        raise UnsupportedModel(
            f"{reader.path}: tensor {name!r} is of ggml type {number}; known types are {known}. "
            "Take the model in one of these, such as Q8_0 or Q4_K_M."
        )
    ggml_type = GGMLType(number)
    if min(shape) < 1 or shape[-1] % ggml_type.block_weights:
        raise reader.error(
            f"tensor {name!r} has the shape {shape}; dimensions are at least 1, and a row of "
            f"{ggml_type.name} is a multiple of {ggml_type.block_weights}"
        )
    size_bytes = math.prod(shape) // ggml_type.block_weights * ggml_type.block_bytes
    return TensorInfo(name, shape, ggml_type, offset, size_bytes)


def _placed(
    tensors: list[TensorInfo], header_bytes: int, alignment: int, reader: HeaderReader
) -> dict[str, TensorInfo]:
    """The tensors by name, offsets counted from the file's start; each within the file, alone."""
    placed: dict[str, TensorInfo] = {}
    end = header_bytes
    for info in sorted(tensors, key=lambda info: info.offset):
        offset = header_bytes + info.offset
        if info.name in placed:
            raise reader.error(f"the tensor {info.name!r} comes twice")
        if info.offset % alignment:
            raise reader.error(f"tensor {info.name!r} does not start at a multiple of {alignment}")
        if offset < end:
            raise reader.error(f"tensor {info.name!r} overlaps the one before it")
        end = offset + info.size_bytes
        if end > reader.size_bytes:
            raise reader.error(
                f"tensor {info.name!r} ends at byte {end}, the file at {reader.size_bytes}: "
                "it is truncated; copy or download it again"
            )
        placed[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.size_bytes)
    return {info.name: placed[info.name] for info in tensors}  # in the file's own order
