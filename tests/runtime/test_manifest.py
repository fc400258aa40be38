"""Manifests: pieces that cover a model exactly, and nothing taken on trust from a sender."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadModelFile, ProtocolError
from mesh.ids import ModelId
from mesh.limits import MAX_PIECE_BYTES
from planner.plan import Span
from runtime.formats.gguf import FINGERPRINT_SAMPLE_BYTES
from runtime.stored.layout import ByteRange, FileSize, Layout, files_of, layout_of, share_of
from runtime.stored.manifest import Manifest, cut, decode_manifest, make_manifest
from runtime.weights import Checkpoint
from tests.runtime.tiny_model import write_tiny_gemma

MODEL = ModelId("ab" * 32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Matrices of several pieces, and norms of less than a sample."""
    path = tmp_path_factory.mktemp("model") / "house.gguf"
    return Checkpoint.open(
        write_tiny_gemma(path, layers=3, hidden=256, heads=8, head_dim=32, ffn=1536)
    )


@pytest.fixture(scope="module")
def manifest(checkpoint: Checkpoint) -> Manifest:
    return make_manifest(checkpoint.model_id, layout_of(checkpoint), files_of(checkpoint))


layouts = st.lists(st.integers(1, 3 * MAX_PIECE_BYTES), min_size=1, max_size=4).flatmap(
    lambda sizes: st.builds(
        Layout,
        st.just(tuple(FileSize(f"f{n}.bin", size) for n, size in enumerate(sizes))),
        st.lists(st.integers(0, sum(sizes)), max_size=20).map(tuple),
        st.just(()),
    )
)


@given(layouts)
def test_pieces_cover_all_files_and_lie_each_in_one(layout: Layout) -> None:
    starts = cut(layout)
    sizes = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] == layout.size_bytes
    assert sizes.min() >= 1
    assert sizes.max() <= MAX_PIECE_BYTES
    assert set(layout.starts) <= set(starts.tolist())
    ends = np.cumsum([file.size_bytes for file in layout.files])
    assert set(ends.tolist()) <= set(starts.tolist())


def test_every_piece_hashes_to_what_the_manifest_says(
    checkpoint: Checkpoint, manifest: Manifest
) -> None:
    data = checkpoint.path.read_bytes()
    assert manifest.size_bytes == len(data)
    for index in range(len(manifest)):
        piece = manifest.piece(index)
        part = data[piece.offset : piece.offset + piece.size_bytes]
        assert manifest.is_right(index, part)
        assert not manifest.is_right(index, part[:-1] + bytes([part[-1] ^ 1]))


def test_a_manifest_arrives_as_it_was_made(manifest: Manifest) -> None:
    encoded = manifest.encode()
    assert len(encoded) == manifest.encoded_bytes
    again = decode_manifest(encoded)
    assert again.id == manifest.id == hashlib.sha256(encoded).digest()
    assert (again.model, again.files, again.opening) == (
        manifest.model,
        manifest.files,
        manifest.opening,
    )
    assert again.starts.tolist() == manifest.starts.tolist()
    assert again.digests == manifest.digests


def test_two_devices_make_the_same_manifest(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = tmp_path / "called-otherwise.gguf"
    other.write_bytes(checkpoint.path.read_bytes())
    copy = Checkpoint.open(other)
    made = make_manifest(copy.model_id, layout_of(copy), files_of(copy))
    mine = make_manifest(checkpoint.model_id, layout_of(checkpoint), files_of(checkpoint))
    assert made.id == mine.id


def test_the_opening_alone_opens_the_same_model(
    checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path
) -> None:
    """Everything else a hole."""
    data = checkpoint.path.read_bytes()
    path = tmp_path / "holes.gguf"
    with path.open("wb") as file:
        file.truncate(len(data))
        for index in manifest.opening_pieces:
            piece = manifest.piece(index)
            file.seek(piece.offset)
            file.write(data[piece.offset : piece.offset + piece.size_bytes])
    opened = Checkpoint.open(path)
    assert opened.model_id == checkpoint.model_id
    assert opened.profile().layers == checkpoint.profile().layers


def test_a_share_takes_its_tensors_and_no_others(
    checkpoint: Checkpoint, manifest: Manifest
) -> None:
    """Beside the opening not a byte more than the tensors' own, but for padding."""
    opening = set(manifest.opening_pieces)
    middle = set(manifest.pieces_of(share_of(checkpoint, Span(1, 2)))) - opening
    names = [name for name in checkpoint.file.tensors if name.startswith("blk.1.")]
    tensors = [checkpoint.file.tensors[name] for name in names]
    own = sum(t.size_bytes for t in tensors if t.size_bytes > 4 * FINGERPRINT_SAMPLE_BYTES)
    samples = FINGERPRINT_SAMPLE_BYTES * sum(
        t.size_bytes > 4 * FINGERPRINT_SAMPLE_BYTES for t in tensors
    )
    taken = sum(manifest.size_of(index) for index in middle)
    assert own - samples <= taken <= own - samples + 32 * len(tensors)


def test_all_shares_together_are_the_whole_model(
    checkpoint: Checkpoint, manifest: Manifest
) -> None:
    pieces: set[int] = set()
    for layer in range(3):
        pieces |= set(manifest.pieces_of(share_of(checkpoint, Span(layer, layer + 1))))
    assert pieces == set(range(len(manifest)))


@given(st.data())
def test_a_range_gets_the_pieces_that_hold_it(data: st.DataObject) -> None:
    layout = data.draw(layouts)
    starts = cut(layout)
    manifest = Manifest(b"", MODEL, layout.files, starts, b"", ())
    first = data.draw(st.integers(0, layout.size_bytes - 1))
    last = data.draw(st.integers(first + 1, layout.size_bytes))
    pieces = manifest.pieces_of([ByteRange(first, last)])
    assert starts[pieces[0]] <= first < starts[pieces[0] + 1]
    assert starts[pieces[-1]] < last <= starts[pieces[-1] + 1]
    assert pieces == list(range(pieces[0], pieces[-1] + 1))


@given(st.data())
def test_a_tampered_manifest_is_refused_or_another_one(
    manifest: Manifest, data: st.DataObject
) -> None:
    """Whatever bytes come: ProtocolError, or a manifest with another id."""
    encoded = bytearray(manifest.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_manifest(bytes(encoded))
    except ProtocolError:
        return
    assert decoded.id != manifest.id
    assert len(decoded.starts) - 1 == len(decoded.digests) // 32
    assert sum(last - first for first, last in decoded.opening) <= len(decoded)


@pytest.mark.parametrize("cut_to", [0, 10, 57, 58, 80, 200])
def test_a_truncated_manifest_is_refused(manifest: Manifest, cut_to: int) -> None:
    with pytest.raises(ProtocolError):
        decode_manifest(manifest.encode()[:cut_to])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".hidden", "a\\b", "a\nb", "ü"])
def test_a_file_name_never_leaves_its_folder(name: str) -> None:
    layout = Layout((FileSize(name, 4),), (), ())
    encoded = Manifest(b"", MODEL, layout.files, cut(layout), bytes(32), ()).encode()
    with pytest.raises(ProtocolError, match="name"):
        decode_manifest(encoded)


def test_a_file_that_became_shorter_is_said_so(checkpoint: Checkpoint, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(checkpoint.path.read_bytes()[:-100])
    with pytest.raises(BadModelFile, match="cannot be read whole"):
        make_manifest(MODEL, layout_of(checkpoint), [short])
