"""The cursor over a GGUF header: numbers, strings, arrays, each checked against what is left."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np

from mesh.errors import BadModelFile

MAX_METADATA_BYTES: Final = 1 << 27  # 128 MiB; Gemma's vocabulary of 262,144 takes 6 MB
MAX_ARRAY_ITEMS: Final = 1 << 22  # strings and inner arrays, whole file; vocabularies end at 2**20
MAX_ARRAY_DEPTH: Final = 3
MAX_NAME_BYTES: Final = 1 << 16

STRING: Final = 8
ARRAY: Final = 9
_NUMBERS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_LENGTH: Final = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """An array of strings in the file; decoded as a whole when it is first looked into."""

    def __init__(self, mapped: mmap.mmap, path: str, position: int, count: int) -> None:
        self._source: tuple[mmap.mmap, str, int] | None = (mapped, path, position)
        self._count = count
        self._strings: list[str] = []

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._decoded()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def _decoded(self) -> list[str]:
        """Raises BadModelFile for a string that is not UTF-8."""
        if self._source is not None:
            mapped, path, position = self._source
            try:
                self._strings = _strings(mapped, position, self._count)
            except UnicodeDecodeError as error:
                raise HeaderReader(mapped, path).error(
                    f"a string after byte {position} is not UTF-8: {error.reason}"
                ) from None
            self._source = None
        return self._strings


def _strings(mapped: mmap.mmap, position: int, count: int) -> list[str]:
    """Strings whose lengths were checked before: 0.1 s for 262,144."""
    unpack, strings = _LENGTH.unpack_from, []
    for _ in range(count):
        start = position + 8
        position = start + unpack(mapped, position)[0]
        strings.append(str(mapped[start:position], "utf-8"))
    return strings


class HeaderReader:
    """Reads forward through the header; `error` names the file and says what to do."""

    def __init__(self, mapped: mmap.mmap, path: str, position: int = 0) -> None:
        self.path = path
        self.position = position
        self.size_bytes = len(mapped)
        self._mapped = mapped
        self._items_left = MAX_ARRAY_ITEMS

    def error(self, what: str) -> BadModelFile:
        return BadModelFile(f"{self.path} is damaged or no GGUF file: {what}")

    def take(self, size_bytes: int) -> bytes:
        """The next bytes. Raises BadModelFile at the end of the file."""
        end = self.position + size_bytes
        if end > self.size_bytes:
            raise self.error(
                f"{size_bytes} bytes expected at {self.position}, but it ends at {self.size_bytes}"
            )
        taken = self._mapped[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> Any:
        """One little-endian number by its `struct` code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str, item_bytes: int, most: int) -> int:
        """A count of items of at least `item_bytes` each, held against the rest of the file."""
        count: int = self.number("Q")
        left = self.size_bytes - self.position
        if count > most or count * item_bytes > left:
            raise self.error(
                f"it claims {count} {what}; at most {most} are possible, and {left} bytes are left"
            )
        return count

    def string(self) -> str:
        start = self.position + 8
        length: int = self.number("Q")
        if length > min(self.size_bytes - start, MAX_METADATA_BYTES):
            raise self.error(f"a string of {length} bytes at {start} does not fit")
        self.position = start + length
        try:
            return str(self._mapped[start : self.position], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"the string at {start} is not UTF-8: {error.reason}") from None

    def name(self, what: str) -> str:
        start = self.position
        name = self.string()
        if not 0 < self.position - start - 8 <= MAX_NAME_BYTES:
            raise self.error(f"{what} of {self.position - start - 8} bytes at {start}")
        return name

    def value(self, key: str) -> Any:
        """A metadata value: a number, bool, string, numpy array, StringArray or list of arrays."""
        kind: int = self.number("I")
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array(key, 1)
        return self._scalar(key, kind)

    def _scalar(self, key: str, kind: int) -> Any:
        code = _NUMBERS.get(kind)
        if code is None:
            raise self.error(f"the value of {key!r} is of the unknown type {kind}")
        if code != "?":
            return self.number(code)
        flag = self.number("B")
        if flag > 1:
            raise self.error(f"{key!r} is a truth value; 0 or 1 expected, got {flag}")
        return flag == 1

    def _array(self, key: str, depth: int) -> Any:
        if depth > MAX_ARRAY_DEPTH:
            raise self.error(f"{key!r} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        kind: int = self.number("I")
        if code := _NUMBERS.get(kind):
            dtype = np.dtype("<u1" if code == "?" else "<" + code)
            count = self.count(f"items in {key!r}", dtype.itemsize, MAX_METADATA_BYTES // 8)
            numbers = np.frombuffer(self.take(count * dtype.itemsize), dtype)
            return numbers != 0 if code == "?" else numbers
        if kind not in (STRING, ARRAY):
            raise self.error(f"the items of {key!r} are of the unknown type {kind}")
        item_bytes = 8 if kind == STRING else 12
        count = self.count(f"items in {key!r}", item_bytes, self._items_left)
        self._items_left -= count
        if kind == ARRAY:
            return [self._array(key, depth + 1) for _ in range(count)]
        start = self.position
        self._skip_strings(key, count)
        return StringArray(self._mapped, self.path, start, count)

    def _skip_strings(self, key: str, count: int) -> None:
        """Walks over strings without decoding them: 30 ms for 262,144."""
        position, mapped, unpack = self.position, self._mapped, _LENGTH.unpack_from
        last = self.size_bytes - 8
        for _ in range(count):
            if position > last:
                raise self.error(f"it ends within the strings of {key!r}")
            position += 8 + unpack(mapped, position)[0]
        if position > self.size_bytes:
            raise self.error(f"it ends within the strings of {key!r}")
        self.position = position
