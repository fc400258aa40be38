"""The layout of a model on disk: its files laid end to end, and which bytes are needed for what.

Bytes are counted over all files, in their order, as if they were one. The opening is what must be
there before a model can be opened and told from others: headers, and the samples that its
fingerprint is made of. With it, and holes for the rest, a model opens like a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.plan import Span
from runtime.checkpoints import Model
from runtime.cut import WHOLE, Cut
from runtime.formats.gguf import FINGERPRINT_SAMPLE_BYTES, FileRange, GGUFFile
from runtime.formats.tensor_file import TensorFile

GGUF_NAME = "model.gguf"  # the same on every device, whatever a person calls the file
WHOLE_SAMPLE_BYTES = 4 * FINGERPRINT_SAMPLE_BYTES  # a tensor so small is not cut for its sample


@dataclass(frozen=True, slots=True)
class FileSize:
    """A file of a model, by its name in the model's folder."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes [first, last), counted over all files."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Layout:
    """`starts` are bytes at which a new piece begins, so that a tensor needs nobody's pieces."""

    files: tuple[FileSize, ...]
    starts: tuple[int, ...]
    opening: tuple[ByteRange, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def files_of(checkpoint: Model) -> tuple[Path, ...]:
    """Where the files of its layout are, in the same order."""
    if isinstance(checkpoint.file, GGUFFile):
        return (checkpoint.path,)
    return tuple(checkpoint.path / file.name for file in layout_of(checkpoint).files)


def layout_of(checkpoint: Model) -> Layout:
    """The same for the same model on every device."""
    file = checkpoint.file
    places = _Places(file)
    small, starts = {}, set()
    for name in file.tensors:
        place = places.of(file.range_of(name))
        starts.add(place.first)
        if place.last - place.first <= WHOLE_SAMPLE_BYTES:
            small[place.first] = place
    opening = []
    for part in file.header_ranges():
        place = places.of(part)
        if place.first in small:
            place = small[place.first]
        else:
            starts |= {place.first, place.last}
        opening.append(place)
    inside = sorted(start for start in starts if 0 < start < places.size_bytes)
    return Layout(
        places.files, tuple(inside), tuple(sorted(opening, key=lambda place: place.first))
    )


def share_of(checkpoint: Model, span: Span, cut: Cut = WHOLE) -> tuple[ByteRange, ...]:
    """What a device needs that runs these layers, or these shares of them; the opening is among it.

    Raises PlanError for shares that the model does not have.
    """
    places = _Places(checkpoint.file)
    return tuple(places.of(part) for part in checkpoint.ranges_of(span, cut))


class _Places:
    """Where each file begins, when they are laid end to end; empty files are left out."""

    def __init__(self, file: TensorFile) -> None:
        self._starts: dict[str, int] = {}
        files, end = [], 0
        for name, size_bytes in file.files().items():
            self._starts[name] = end
            end += size_bytes
            if size_bytes:
                known_as = GGUF_NAME if isinstance(file, GGUFFile) else name
                files.append(FileSize(known_as, size_bytes))
        self.files = tuple(files)
        self.size_bytes = end

    def of(self, part: FileRange) -> ByteRange:
        first = self._starts[part.file] + part.offset
        return ByteRange(first, first + part.size_bytes)
