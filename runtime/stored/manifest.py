"""The manifest of a model: its files, how they are cut into pieces, what each piece hashes to.

Whoever has a whole model makes it by reading every byte once. The SHA-256 of its encoding names
it: two devices that made the same manifest have the same bytes, and pieces of one are good for the
other. It is not trusted by whoever gets it: every count is held against the bytes that came.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from mesh.errors import BadId, BadModelFile, ProtocolError
from mesh.ids import ModelId
from mesh.limits import MAX_MANIFEST_BYTES, MAX_MODEL_FILES, MAX_PIECE_BYTES, MAX_PIECES
from runtime.stored.layout import ByteRange, FileSize, Layout

HASH_BYTES: Final = 32
MAX_FILE_NAME_BYTES: Final = 200
_MAGIC: Final = b"potluck-pieces-1"
_HEAD: Final = struct.Struct(f"<{len(_MAGIC)}s32sHII")  # magic, model, files, runs, pieces
_FILE: Final = struct.Struct("<HQ")  # bytes of the name that follows, bytes of the file

Sizes = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a piece lies: `offset` bytes into file number `file`."""

    file: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """`starts` has one entry more than there are pieces: the end. `opening` are runs of pieces,
    [first, last), that a model needs before it can be opened.
    """

    id: bytes
    model: ModelId
    files: tuple[FileSize, ...]
    starts: Offsets
    digests: bytes
    opening: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def size_bytes(self) -> int:
        return int(self.starts[-1])

    @property
    def opening_pieces(self) -> list[int]:
        return [index for first, last in self.opening for index in range(first, last)]

    def size_of(self, index: int) -> int:
        return int(self.starts[index + 1] - self.starts[index])

    def piece(self, index: int) -> Piece:
        """Raises IndexError for a number that no piece has."""
        if not 0 <= index < len(self):
            raise IndexError(f"pieces are numbered 0 to {len(self) - 1}; got {index}")
        start, file = int(self.starts[index]), 0
        while start >= self.files[file].size_bytes:
            start -= self.files[file].size_bytes
            file += 1
        return Piece(file, start, self.size_of(index))

    def pieces_of(self, ranges: Iterable[ByteRange]) -> list[int]:
        """The pieces that hold these bytes, each once, ascending."""
        found: set[int] = set()
        for range_ in ranges:
            first = int(np.searchsorted(self.starts, range_.first, side="right")) - 1
            last = int(np.searchsorted(self.starts, range_.last, side="left"))
            found.update(range(max(first, 0), min(last, len(self))))
        return sorted(found)

    def is_right(self, index: int, data: bytes | memoryview) -> bool:
        """Whether these are the bytes of that piece."""
        expected = self.digests[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        return hashlib.sha256(data).digest() == expected

    @property
    def encoded_bytes(self) -> int:
        """How long `encode` is."""
        names = sum(_FILE.size + len(file.name) for file in self.files)
        return _HEAD.size + names + 8 * len(self.opening) + (4 + HASH_BYTES) * len(self)

    def encode(self) -> bytes:
        return _encode(self.model, self.files, self.starts, self.digests, self.opening)


def cut(layout: Layout) -> Offsets:
    """Where pieces begin, and the end: at each of the layout's starts, at each file's start, and
    so often in between that none is larger than MAX_PIECE_BYTES.
    """
    bounds, end = set(layout.starts), 0
    for file in layout.files:
        bounds.add(end)
        end += file.size_bytes
    bounds.add(end)
    ordered = sorted(bounds)
    runs = [
        np.arange(first, last, MAX_PIECE_BYTES, dtype=np.int64)
        for first, last in zip(ordered, ordered[1:], strict=False)
    ]
    return np.concatenate([*runs, np.array([end], dtype=np.int64)])


def make_manifest(model: ModelId, layout: Layout, paths: Sequence[Path]) -> Manifest:
    """Reads and hashes every byte; blocks for as long. Raises BadModelFile for files that cannot
    be read, or are not as long as the layout says.
    """
    starts = cut(layout)
    digests = bytearray()
    index = 0
    for path, file in zip(paths, layout.files, strict=True):
        left = file.size_bytes
        try:
            with path.open("rb", buffering=0) as source:
                while left:
                    size = int(starts[index + 1] - starts[index])
                    digests += hashlib.sha256(_read(source.fileno(), size)).digest()
                    left, index = left - size, index + 1
        except (OSError, EOFError) as error:
            raise BadModelFile(f"{path} cannot be read whole: {error}; copy it again") from None
    runs = _runs(starts, layout.opening)
    encoded = _encode(model, layout.files, starts, bytes(digests), runs)
    return Manifest(
        hashlib.sha256(encoded).digest(), model, layout.files, starts, bytes(digests), runs
    )


def decode_manifest(data: bytes) -> Manifest:
    """Raises ProtocolError for anything but a manifest whose pieces cover its files exactly."""
    if not _HEAD.size <= len(data) <= MAX_MANIFEST_BYTES:
        raise ProtocolError(f"a manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES}")
    magic, model, file_count, run_count, count = _HEAD.unpack_from(data)
    if magic != _MAGIC or not 0 < file_count <= MAX_MODEL_FILES or not 0 < count <= MAX_PIECES:
        raise ProtocolError("this is no manifest of a model, or of another version")
    files, at = _decode_files(data, file_count)
    if len(data) - at != run_count * 8 + count * (4 + HASH_BYTES):
        raise ProtocolError("a manifest is shorter or longer than it says")
    runs = np.frombuffer(data, "<u4", count=2 * run_count, offset=at).reshape(run_count, 2)
    at += run_count * 8
    sizes = np.frombuffer(data, "<u4", count=count, offset=at)
    starts = _checked_starts(sizes, files)
    if run_count and (runs[:, 0] >= runs[:, 1]).any() or (runs > count).any():
        raise ProtocolError("a manifest's opening has pieces that it has not")
    opening = tuple((int(first), int(last)) for first, last in runs)
    if sum(last - first for first, last in opening) > count:
        raise ProtocolError("a manifest's opening is larger than the model")
    try:
        name = ModelId.parse(model.hex())
    except BadId as error:  # 32 bytes always are 64 digits
        raise ProtocolError(str(error)) from None
    digests = data[at + count * 4 :]
    return Manifest(hashlib.sha256(data).digest(), name, files, starts, digests, opening)


def _decode_files(data: bytes, count: int) -> tuple[tuple[FileSize, ...], int]:
    files: list[FileSize] = []
    at = _HEAD.size
    for _ in range(count):
        if len(data) - at < _FILE.size:
            raise ProtocolError("a manifest ends within the names of its files")
        length, size_bytes = _FILE.unpack_from(data, at)
        raw = data[at + _FILE.size : at + _FILE.size + length]
        at += _FILE.size + length
        if len(raw) != length or not 0 < length <= MAX_FILE_NAME_BYTES or not size_bytes:
            raise ProtocolError("a manifest has a file without a name or without bytes")
        files.append(FileSize(_safe_name(raw), size_bytes))
    if len({file.name for file in files}) != len(files):
        raise ProtocolError("a manifest names a file twice")
    return tuple(files), at


def _safe_name(raw: bytes) -> str:
    """A name that stays within its folder on every system; at most one folder further down."""
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    if len(parts) > 2 or not all(map(_is_plain, parts)):
        raise ProtocolError(f"{raw[:40]!r} is no name for a model's file")
    return name


def _is_plain(name: str) -> bool:
    return name.isprintable() and name[:1] not in ("", ".") and "\\" not in name


def _checked_starts(sizes: npt.NDArray[np.uint32], files: Sequence[FileSize]) -> Offsets:
    if sizes.min() < 1 or sizes.max() > MAX_PIECE_BYTES:
        raise ProtocolError(f"a piece has 1 to {MAX_PIECE_BYTES} bytes")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    if int(starts[-1]) != sum(file.size_bytes for file in files):
        raise ProtocolError("a manifest's pieces do not cover its files")
    ends = np.cumsum([file.size_bytes for file in files], dtype=np.int64)
    if not np.isin(ends, starts).all():
        raise ProtocolError("a manifest has a piece that lies in two files")
    return starts


def _encode(
    model: ModelId,
    files: Sequence[FileSize],
    starts: Offsets,
    digests: bytes,
    runs: Sequence[tuple[int, int]],
) -> bytes:
    count = len(starts) - 1
    parts = [_HEAD.pack(_MAGIC, bytes.fromhex(model), len(files), len(runs), count)]
    for file in files:
        raw = file.name.encode()
        parts.append(_FILE.pack(len(raw), file.size_bytes) + raw)
    parts.append(np.array(runs, "<u4").tobytes())
    parts.append(np.diff(starts).astype("<u4").tobytes())
    return b"".join([*parts, digests])


def _runs(starts: Offsets, ranges: Iterable[ByteRange]) -> tuple[tuple[int, int], ...]:
    """Runs of pieces that hold these bytes, those that touch joined."""
    runs: list[tuple[int, int]] = []
    for range_ in sorted(ranges, key=lambda range_: range_.first):
        first = int(np.searchsorted(starts, range_.first, side="right")) - 1
        last = int(np.searchsorted(starts, range_.last, side="left"))
        if runs and first <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return tuple(runs)


def _read(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size)
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            raise EOFError("it ends too early")
        data += more
    return data
