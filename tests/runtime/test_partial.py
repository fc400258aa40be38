"""Partial models: what a crash, a full disk or a damaged piece leaves behind is never a lie."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mesh.errors import BadModelFile, DiskFull, WeightsMissing
from mesh.ids import ModelId
from runtime.stored import partial as partial_module
from runtime.stored.layout import ByteRange, FileSize, Layout
from runtime.stored.manifest import Manifest, make_manifest
from runtime.stored.partial import About, DamagedPiece, PartialModel

ABOUT = About("house", "hf:somebody/house:house.gguf")


@pytest.fixture
def source(tmp_path: Path) -> list[bytes]:
    """Two files of several pieces."""
    files = [os.urandom(600_000), os.urandom(300_001)]
    for number, data in enumerate(files):
        (tmp_path / f"f{number}.bin").write_bytes(data)
    return files


@pytest.fixture
def manifest(tmp_path: Path, source: list[bytes]) -> Manifest:
    files = tuple(FileSize(f"f{n}.bin", len(data)) for n, data in enumerate(source))
    layout = Layout(files, (100, 5000), (ByteRange(0, 100),))
    return make_manifest(ModelId("ab" * 32), layout, [tmp_path / file.name for file in files])


def piece_of(manifest: Manifest, source: list[bytes], index: int) -> bytes:
    piece = manifest.piece(index)
    return source[piece.file][piece.offset : piece.offset + piece.size_bytes]


def test_pieces_in_any_order_make_the_files(
    tmp_path: Path, manifest: Manifest, source: list[bytes]
) -> None:
    partial = PartialModel.create(tmp_path / "p", manifest, ABOUT)
    assert not partial.can_open
    for index in reversed(range(len(manifest))):
        assert not partial.is_whole
        partial.add(index, piece_of(manifest, source, index))
    assert partial.is_whole
    assert partial.can_open
    assert partial.have_bytes == sum(map(len, source))
    made = [(tmp_path / "p/files" / file.name).read_bytes() for file in manifest.files]
    assert made == source


def test_a_damaged_piece_does_not_count(
    tmp_path: Path, manifest: Manifest, source: list[bytes]
) -> None:
    partial = PartialModel.create(tmp_path / "p", manifest, ABOUT)
    good = piece_of(manifest, source, 2)
    with pytest.raises(DamagedPiece, match="piece 2 of house is damaged"):
        partial.add(2, bytes([good[0] ^ 1]) + good[1:])
    assert not partial.has(2)
    with pytest.raises(WeightsMissing):
        partial.read(2)
    partial.add(2, good)
    assert partial.read(2) == good
    assert partial.runs() == [(2, 3)]


def test_a_piece_that_the_disk_spoiled_is_given_to_nobody_and_comes_again(
    tmp_path: Path, manifest: Manifest, source: list[bytes]
) -> None:
    """Reliability test 23: never served on."""
    partial = PartialModel.create(tmp_path / "p", manifest, ABOUT)
    good = piece_of(manifest, source, 1)
    partial.add(1, good)
    piece = manifest.piece(1)
    file = tmp_path / "p" / "files" / manifest.files[piece.file].name
    with file.open("r+b") as opened:
        opened.seek(piece.offset)
        opened.write(bytes([good[0] ^ 1]))
    with pytest.raises(WeightsMissing, match="piece 1 of house is spoiled"):
        partial.read(1)
    assert not partial.has(1)
    partial.add(1, good)
    assert partial.read(1) == good


def test_what_was_saved_is_there_after_a_restart(
    tmp_path: Path, manifest: Manifest, source: list[bytes]
) -> None:
    partial = PartialModel.create(tmp_path / "p", manifest, ABOUT)
    for index in (0, 3):
        partial.add(index, piece_of(manifest, source, index))
    partial.save()
    partial.add(1, piece_of(manifest, source, 1))  # not saved: it comes again
    again = PartialModel.open(tmp_path / "p")
    assert again.runs() == [(0, 1), (3, 4)]
    assert again.about == ABOUT
    assert again.manifest.id == manifest.id
    assert again.read(3) == piece_of(manifest, source, 3)


def test_a_full_disk_keeps_what_has_come(
    tmp_path: Path, manifest: Manifest, source: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialModel.create(tmp_path / "p", manifest, ABOUT)
    partial.add(0, piece_of(manifest, source, 0))
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(partial_module.os, "pwrite", full)
    with pytest.raises(DiskFull, match="is full; what has come is kept"):
        partial.add(1, piece_of(manifest, source, 1))
    partial.save()
    monkeypatch.setattr(partial_module.os, "pwrite", real)
    again = PartialModel.open(tmp_path / "p")
    assert again.runs() == [(0, 1)]
    again.add(1, piece_of(manifest, source, 1))


def test_too_little_space_is_said_before_anything_comes(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialModel.create(tmp_path / "p", manifest, ABOUT)
    usage = type("Usage", (), {"free": 500_000})()
    monkeypatch.setattr(partial_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskFull, match=r"0\.9|1 MB of house are to come"):
        partial.check_space(range(len(manifest)))
    partial.check_space([])


@pytest.mark.parametrize("name", ["manifest", "have", "about.json"])
def test_a_torn_folder_is_no_partial_model(tmp_path: Path, manifest: Manifest, name: str) -> None:
    PartialModel.create(tmp_path / "p", manifest, ABOUT)
    (tmp_path / "p" / name).write_bytes(b"")
    with pytest.raises(BadModelFile, match="may be removed"):
        PartialModel.open(tmp_path / "p")
    (tmp_path / "p" / name).unlink()
    with pytest.raises(BadModelFile):
        PartialModel.open(tmp_path / "p")


def test_a_file_of_another_length_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    """A mapped file that is shorter than it should be kills whoever reads it."""
    PartialModel.create(tmp_path / "p", manifest, ABOUT)
    with (tmp_path / "p/files/f0.bin").open("ab") as file:
        file.truncate(1000)
    with pytest.raises(BadModelFile, match="damaged"):
        PartialModel.open(tmp_path / "p")
