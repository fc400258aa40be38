"""A file mapped into memory, and tensors in it that are read where they lie."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from mesh.errors import BadModelFile, ModelNotFound
from runtime.formats.gguf import Bytes, TensorInfo, copied


class MappedFile:
    """Read-only. Not for a file that is still being written: truncating it kills the reader."""

    def __init__(self, path: Path) -> None:
        """Raises ModelNotFound or BadModelFile."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._mapped: mmap.mmap | None = mmap.mmap(
                    file.fileno(), 0, access=mmap.ACCESS_READ
                )
        except FileNotFoundError:
            raise ModelNotFound(f"there is no file {path}; check the path") from None
        except ValueError:
            raise BadModelFile(f"{path} is empty; copy or download it again") from None
        except OSError as error:
            raise BadModelFile(f"{path} cannot be read: {error.strerror}") from None
        self.size_bytes = len(self._mapped)

    def bytes(self, offset: int, size_bytes: int) -> Bytes:
        """Not copied. The caller has checked that they lie within the file."""
        assert self._mapped is not None, "the file is closed"
        return np.frombuffer(self._mapped, np.uint8, count=size_bytes, offset=offset)

    def raw(self, info: TensorInfo) -> Bytes:
        return self.bytes(info.offset, info.size_bytes)

    def copy(self, info: TensorInfo, first: int = 0, size_bytes: int | None = None) -> Bytes:
        """The same in memory of its own, or so many bytes from `first` on; the file's pages do not
        stay in memory beside them.
        """
        assert self._mapped is not None, "the file is closed"
        return copied(self._mapped, info, first, size_bytes)

    def close(self) -> None:
        """Lets go of the file; views handed out before stay valid and keep it mapped."""
        self._mapped = None
