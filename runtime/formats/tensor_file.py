"""What the two formats have in common: named tensors, and where their bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mesh.ids import ModelId
from runtime.formats.gguf import Bytes, FileRange, TensorInfo


class TensorFile(Protocol):
    """An open GGUF file, or a folder of safetensors files."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Tensors that are there but of a type that we cannot dequantise, and their types."""

    def raw(self, name: str) -> Bytes:
        """That tensor's bytes, read-only and not copied. Raises BadModelFile."""

    def copy(self, name: str, first: int = 0, size_bytes: int | None = None) -> Bytes:
        """The same in memory of its own, or so many of its bytes from `first` on; the file's pages
        do not stay in memory beside them.
        """

    def range_of(self, name: str) -> FileRange:
        """Where that tensor lies."""

    def files(self) -> Mapping[str, int]:
        """All files of the model by name, and their sizes in bytes."""

    def header_ranges(self) -> list[FileRange]:
        """What must be there for the model to open, and to be known by its fingerprint."""

    def fingerprint(self) -> ModelId:
        """The same for the same model on every device, and for no other."""

    def close(self) -> None:
        """Lets go of the files; views handed out before stay valid."""
