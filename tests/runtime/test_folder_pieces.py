"""A model as a folder of several files, cut into pieces and put together from its share alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planner.plan import Span
from runtime.stored.layout import files_of, layout_of, share_of
from runtime.stored.manifest import Manifest, decode_manifest, make_manifest
from runtime.stored.partial import About, PartialModel
from runtime.weights import Checkpoint
from tests.runtime.random_checkpoints import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In several shards, with an index."""
    return write_folder("qwen2", tmp_path_factory.mktemp("qwen"), max_shard_size="60KB")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def manifest(checkpoint: Checkpoint) -> Manifest:
    return make_manifest(checkpoint.model_id, layout_of(checkpoint), files_of(checkpoint))


def fill(partial: PartialModel, checkpoint: Checkpoint, pieces: list[int]) -> None:
    paths = files_of(checkpoint)
    for index in pieces:
        piece = partial.manifest.piece(index)
        data = paths[piece.file].read_bytes()[piece.offset : piece.offset + piece.size_bytes]
        partial.add(index, data)


def test_the_manifest_covers_every_file(checkpoint: Checkpoint, manifest: Manifest) -> None:
    assert len(manifest.files) > 3
    sizes = {file.name: file.size_bytes for file in manifest.files}
    assert sizes == {path.name: path.stat().st_size for path in files_of(checkpoint)}
    assert decode_manifest(manifest.encode()).id == manifest.id


def test_a_share_of_a_folder_computes_like_the_whole(
    checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path
) -> None:
    """The last layer and the head, from their pieces; everything else a hole."""
    partial = PartialModel.create(tmp_path / "p", manifest, About("house"))
    fill(partial, checkpoint, manifest.opening_pieces)
    assert partial.can_open
    opened = Checkpoint.open(partial.path)
    assert opened.model_id == checkpoint.model_id
    last = len(checkpoint.spec.layers)
    wanted = manifest.pieces_of(share_of(opened, Span(last - 1, last)))
    fill(partial, checkpoint, partial.missing(wanted))
    assert not partial.is_whole
    hidden = torch.randn(3, checkpoint.spec.hidden_size)
    logits = [one.load_head().logits(hidden) for one in (checkpoint, opened)]
    assert torch.equal(*logits)
    states = [one.load_layer(last - 1).state_dict() for one in (checkpoint, opened)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_all_pieces_make_the_folder_again(
    checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path
) -> None:
    partial = PartialModel.create(tmp_path / "p", manifest, About("house"))
    fill(partial, checkpoint, list(range(len(manifest))))
    assert partial.is_whole
    for path in files_of(checkpoint):
        assert (partial.path / path.name).read_bytes() == path.read_bytes()
