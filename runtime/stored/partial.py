"""A partial model: sparse files with the pieces that have come, and a record of which those are.

    <folder>/manifest     what each piece must hash to
    <folder>/have         one bit a piece, set once the piece is on the disk
    <folder>/about.json   what a person calls the model, and where it came from
    <folder>/files/...    as long as the whole model from the start, with holes

A bit is written only after the bytes of its piece are on the disk, and in place, so that neither a
crash nor a full disk can make it lie; what it does not say comes again. The files keep their length
for good: a mapped file that shrinks kills the process that reads it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mesh.errors import BadModelFile, DiskFull, ModelError, ProtocolError, WeightsMissing
from mesh.ids import ModelId
from runtime.stored.manifest import Manifest, decode_manifest

SPARE_BYTES = 64 * 1024 * 1024  # left free on the disk: a home device has other things to write
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class About:
    """What a person calls the model; `origin` is what it was pulled as, empty for none."""

    name: str
    origin: str = ""


class DamagedPiece(ModelError):
    """The bytes are not those of the piece."""


class PartialModel:
    """Threads may add and read pieces at once."""

    def __init__(self, folder: Path, manifest: Manifest, about: About, have: bytearray) -> None:
        self.folder = folder
        self.manifest = manifest
        self.about = about
        self._have = have  # a byte a piece: setting one is atomic, setting a bit is not
        self._saving = threading.Lock()
        self._opening = threading.Lock()
        self._descriptors: list[int] = []
        # Not before the last thread that reads has let go of this object.
        weakref.finalize(self, _close, self._descriptors)

    @classmethod
    def create(cls, folder: Path, manifest: Manifest, about: About) -> PartialModel:
        """Makes the folder, or replaces one that has no manifest yet. Raises DiskFull."""
        files = folder / "files"
        try:
            files.mkdir(parents=True, exist_ok=True)
            for file in manifest.files:
                (files / file.name).parent.mkdir(exist_ok=True)
                with (files / file.name).open("ab") as made:
                    made.truncate(file.size_bytes)
            (folder / "have").write_bytes(bytes(-(-len(manifest) // 8)))
            (folder / "about.json").write_text(json.dumps(asdict(about)))
            scratch = folder / "manifest.new"
            scratch.write_bytes(manifest.encode())
            scratch.replace(folder / "manifest")  # last: a folder with a manifest is whole
        except OSError as error:
            raise disk_error(error, folder) from None
        return cls(folder, manifest, about, bytearray(len(manifest)))

    @classmethod
    def open(cls, folder: Path) -> PartialModel:
        """Raises BadModelFile for a folder that is none, or is damaged."""
        try:
            manifest = decode_manifest((folder / "manifest").read_bytes())
            about = About(**json.loads((folder / "about.json").read_text()))
            bits = np.frombuffer((folder / "have").read_bytes(), np.uint8)
            have = bytearray(np.unpackbits(bits)[: len(manifest)].tobytes())
            sizes = [(folder / "files" / file.name).stat().st_size for file in manifest.files]
        except (OSError, ValueError, TypeError, ProtocolError) as error:
            raise BadModelFile(
                f"the partial model in {folder} cannot be used ({error}); it may be removed"
            ) from None
        if sizes != [file.size_bytes for file in manifest.files] or len(have) != len(manifest):
            raise BadModelFile(f"the partial model in {folder} is damaged; it may be removed")
        return cls(folder, manifest, about, have)

    @property
    def model(self) -> ModelId:
        return self.manifest.model

    @property
    def path(self) -> Path:
        """What to open: the one file, or the folder of several."""
        files = self.folder / "files"
        return files / self.manifest.files[0].name if len(self.manifest.files) == 1 else files

    @property
    def can_open(self) -> bool:
        return not self.missing(self.manifest.opening_pieces)

    @property
    def is_whole(self) -> bool:
        return 0 not in self._have

    @property
    def have_bytes(self) -> int:
        have = np.frombuffer(bytes(self._have), np.uint8)
        return int(np.diff(self.manifest.starts)[have == 1].sum())

    def has(self, index: int) -> bool:
        return 0 <= index < len(self._have) and self._have[index] == 1

    def missing(self, pieces: Iterable[int]) -> list[int]:
        return [index for index in pieces if not self._have[index]]

    def runs(self) -> list[tuple[int, int]]:
        """The pieces that are here, as runs [first, last)."""
        have = np.frombuffer(b"\0" + bytes(self._have) + b"\0", np.int8)
        edges = np.flatnonzero(np.diff(have))
        return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def check_space(self, pieces: Iterable[int]) -> None:
        """Raises DiskFull when the disk has no room for these: better now than half-way."""
        needed = sum(self.manifest.size_of(index) for index in self.missing(pieces))
        free = shutil.disk_usage(self.folder).free
        if needed and needed + SPARE_BYTES > free:
            raise DiskFull(
                f"{needed / 1e6:.0f} MB of {self.about.name} are to come and {free / 1e6:.0f} MB "
                f"are free on the disk of {self.folder}; free "
                f"{(needed + SPARE_BYTES - free) / 1e6:.0f} MB and try again"
            )

    def add(self, index: int, data: bytes | memoryview) -> None:
        """Verifies a piece and writes it. Raises DamagedPiece, or DiskFull with nothing lost."""
        if not self.manifest.is_right(index, data):
            raise DamagedPiece(f"piece {index} of {self.about.name} is damaged")
        piece = self.manifest.piece(index)
        try:
            descriptor, at = self._descriptor(piece.file), piece.offset
            while data:
                written = os.pwrite(descriptor, data, at)
                data, at = memoryview(data)[written:], at + written
        except OSError as error:
            raise disk_error(error, self.folder) from None
        self._have[index] = 1

    def read(self, index: int) -> bytes:
        """A piece that is here and still what it was. Raises WeightsMissing for any other; one that
        the disk has spoiled is not given to anybody, and comes again.
        """
        if not self.has(index):
            raise WeightsMissing(f"piece {index} of {self.about.name} is not here yet")
        piece = self.manifest.piece(index)
        data = os.pread(self._descriptor(piece.file), piece.size_bytes, piece.offset)
        if not self.manifest.is_right(index, data):
            self._have[index] = 0
            raise WeightsMissing(f"piece {index} of {self.about.name} is spoiled on the disk here")
        return data

    def save(self) -> None:
        """What has come until now survives a crash and a power cut. Raises DiskFull."""
        with self._saving:
            bits = np.packbits(np.frombuffer(bytes(self._have), np.uint8)).tobytes()
            try:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
                with (self.folder / "have").open("r+b") as record:
                    record.write(bits)  # in place: a full disk has room for it
                    record.flush()
                    os.fsync(record.fileno())
            except OSError as error:
                raise disk_error(error, self.folder) from None

    def _descriptor(self, file: int) -> int:
        with self._opening:
            if not self._descriptors:
                for one in self.manifest.files:
                    path = self.folder / "files" / one.name
                    self._descriptors.append(os.open(path, os.O_RDWR))
            return self._descriptors[file]


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def disk_error(error: OSError, folder: Path) -> ModelError:
    """A disk's refusal in words: DiskFull where it is full."""
    if error.errno in _FULL:
        return DiskFull(
            f"the disk of {folder} is full; what has come is kept: free some space and try again, "
            "and it goes on from there"
        )
    return ModelError(f"{folder} cannot be written: {error.strerror or error}; check the disk")
