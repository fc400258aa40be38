"""A model's tensors under other names: those of our maps, whatever a checkpoint calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mesh.errors import BadModelFile
from mesh.ids import ModelId
from runtime.formats.gguf import Bytes, FileRange, TensorInfo
from runtime.formats.tensor_file import TensorFile


class RenamedFile:
    """A TensorFile over another. Of two tensors with one new name (a tied copy), either will do."""

    def __init__(self, file: TensorFile, rename: Callable[[str], str]) -> None:
        self._file = file
        self._names = {rename(name): name for name in file.tensors}
        self.tensors: Mapping[str, TensorInfo] = {
            new: file.tensors[name] for new, name in self._names.items()
        }
        self.unreadable: Mapping[str, str] = {
            rename(name): kind for name, kind in file.unreadable.items()
        }

    @property
    def path(self) -> Path:
        return self._file.path

    def raw(self, name: str) -> Bytes:
        """Raises BadModelFile for a name that is not there."""
        return self._file.raw(self._name(name))

    def copy(self, name: str, first: int = 0, size_bytes: int | None = None) -> Bytes:
        """The same in memory of its own, or some of it. Raises BadModelFile."""
        return self._file.copy(self._name(name), first, size_bytes)

    def range_of(self, name: str) -> FileRange:
        return self._file.range_of(self._names[name])

    def files(self) -> Mapping[str, int]:
        return self._file.files()

    def header_ranges(self) -> list[FileRange]:
        return self._file.header_ranges()

    def fingerprint(self) -> ModelId:
        return self._file.fingerprint()

    def close(self) -> None:
        self._file.close()

    def _name(self, name: str) -> str:
        if name not in self._names:
            raise BadModelFile(f"{self.path} has no tensor {name!r:.100}")
        return self._names[name]
