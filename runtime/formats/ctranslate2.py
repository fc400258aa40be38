"""CTranslate2's model.bin, in which converted Whisper models are handed around.

A header (version, name of the spec, its revision), then a table of variables with their bytes,
then aliases. Only floats are read: what is quantised there is quantised for its own arithmetic.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mesh.errors import BadModelFile, UnsupportedModel
from mesh.ids import ModelId
from runtime.formats.gguf import (
    FINGERPRINT_SAMPLE_BYTES,
    Bytes,
    FileRange,
    GGMLType,
    TensorInfo,
)
from runtime.formats.mapped_file import MappedFile

VERSION: Final = 6
SIDE_FILES: Final = ("config.json", "tokenizer.json", "preprocessor_config.json")
MAX_VARIABLES: Final = 1 << 16
MAX_DIMS: Final = 4
MIN_VARIABLE_BYTES: Final = 2 + 1 + 1 + 4
# As numbered in the file: the type of floats, and the bytes of one value.
_FLOATS: Final[Mapping[int, GGMLType]] = {0: GGMLType.F32, 4: GGMLType.F16, 5: GGMLType.BF16}
_SIZES: Final[Mapping[int, int]] = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}


class CTranslate2File:
    """An open model.bin: a TensorFile whose tensors are the variables of one dim or more."""

    def __init__(
        self,
        file: MappedFile,
        spec: str,
        tensors: Mapping[str, TensorInfo],
        table: list[FileRange],
    ) -> None:
        self.path = file.path
        self.spec = spec  # such as "WhisperSpec"
        self.tensors = tensors
        self.unreadable: Mapping[str, str] = {}
        self._file = file
        self._table = table  # all that is not weights

    @classmethod
    def open(cls, path: Path) -> CTranslate2File:
        """Reads the table. Raises ModelNotFound, BadModelFile or UnsupportedModel."""
        file = MappedFile(path)
        reader = _Reader(file)
        version = reader.number("<I")
        if version != VERSION:
            raise UnsupportedModel(f"{path} is of version {version}, not {VERSION}")
        spec, _revision = reader.text(), reader.number("<I")
        count = reader.number("<I")
        if count > min(MAX_VARIABLES, reader.left // MIN_VARIABLE_BYTES):
            raise reader.bad(f"announces {count} variables")
        tensors: dict[str, TensorInfo] = {}
        table: list[FileRange] = []
        start = 0
        for _ in range(count):
            info = reader.variable()
            if info is not None:
                tensors[info.name] = info
                table.append(FileRange(path.name, start, info.offset - start))
                start = info.offset + info.size_bytes
        table.append(FileRange(path.name, start, file.size_bytes - start))
        return cls(file, spec, tensors, table)

    def with_tensors(self, tensors: Mapping[str, TensorInfo]) -> CTranslate2File:
        """The same file with its weights under other names, cut otherwise."""
        return CTranslate2File(self._file, self.spec, tensors, self._table)

    def raw(self, name: str) -> Bytes:
        """That variable's bytes, not copied. Raises BadModelFile."""
        return self._file.raw(self._info(name))

    def copy(self, name: str, first: int = 0, size_bytes: int | None = None) -> Bytes:
        """The same in memory of its own, or some of it. Raises BadModelFile."""
        return self._file.copy(self._info(name), first, size_bytes)

    def range_of(self, name: str) -> FileRange:
        """Where that tensor lies."""
        info = self.tensors[name]
        return FileRange(self.path.name, info.offset, info.size_bytes)

    def files(self) -> dict[str, int]:
        """All files of the model by name, and their sizes in bytes."""
        sides = (self.path.with_name(name) for name in SIDE_FILES)
        sizes = {side.name: side.stat().st_size for side in sides if side.is_file()}
        return sizes | {self.path.name: self._file.size_bytes}

    def header_ranges(self) -> list[FileRange]:
        """What must be there for the model to open, and to be known by its fingerprint."""
        sides = self.files().items()
        side = [FileRange(name, 0, size) for name, size in sides if name != self.path.name]
        samples = [self.range_of(name).start(FINGERPRINT_SAMPLE_BYTES) for name in self.tensors]
        return [*side, *self._table, *samples]

    def fingerprint(self) -> ModelId:
        """SHA-256 over the config, the size, the table and the first 4 KiB of each tensor.

        It tells models apart; it does not prove that no bit is damaged.
        """
        config = self.path.with_name(SIDE_FILES[0])
        digest = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
        digest.update(struct.pack("<Q", self._file.size_bytes))
        for part in self._table:
            digest.update(self._file.bytes(part.offset, part.size_bytes).data)
        for name in sorted(self.tensors):
            digest.update(self.raw(name)[:FINGERPRINT_SAMPLE_BYTES].data)
        return ModelId(digest.hexdigest())

    def close(self) -> None:
        """Lets go of the file; views handed out before stay valid."""
        self._file.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise BadModelFile(f"{self.path} has no tensor {name!r:.100}")
        return self.tensors[name]


class _Reader:
    """Reads on from where it stands; nothing beyond the end."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._position = 0

    @property
    def left(self) -> int:
        return self._file.size_bytes - self._position

    def bad(self, what: str) -> BadModelFile:
        return BadModelFile(
            f"{self._file.path} {what} at byte {self._position} of {self._file.size_bytes}; "
            "is it a CTranslate2 model? Copy or download it again"
        )

    def take(self, size_bytes: int) -> bytes:
        if size_bytes > self.left:
            raise self.bad(f"ends before {size_bytes} more bytes")
        taken = self._file.bytes(self._position, size_bytes).tobytes()
        self._position += size_bytes
        return taken

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def text(self) -> str:
        return self.take(self.number("<H")).rstrip(b"\0").decode("utf-8", "replace")

    def variable(self) -> TensorInfo | None:
        """None for a scalar. Raises UnsupportedModel for weights that are no floats."""
        name, dims = self.text(), self.number("<B")
        if dims > MAX_DIMS:
            raise self.bad(f"gives {name!r:.60} {dims} dims")
        shape = tuple(self.number("<I") for _ in range(dims))
        kind, size_bytes = self.number("<B"), self.number("<I")
        if size_bytes > self.left or size_bytes != math.prod(shape) * _SIZES.get(kind, 0):
            raise self.bad(f"gives {name!r:.60} {size_bytes} bytes for {list(shape)}")
        offset = self._position
        self._position += size_bytes
        if not shape or shape == (1,):
            return None  # a scalar: a number of heads, a flag
        if kind not in _FLOATS:
            raise UnsupportedModel(
                f"{self._file.path} holds {name!r:.60} as integers; take a model in float16"
            )
        return TensorInfo(name, shape, _FLOATS[kind], offset, size_bytes)
