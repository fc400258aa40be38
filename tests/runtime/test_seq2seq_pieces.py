"""An encoder's folder in pieces: what tells how it is used travels with its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mesh.errors import ProtocolError
from planner.plan import Span
from runtime.checkpoints import open_model
from runtime.formats.safetensors_folder import POOLING
from runtime.seq2seq.reader import Reader, column
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stored.layout import files_of, layout_of, share_of
from runtime.stored.manifest import Manifest, decode_manifest, make_manifest
from runtime.stored.partial import About, PartialModel

pytest.importorskip("transformers")
from tests.runtime.chain import Chain, load_stage
from tests.runtime.random_encoders import LAYERS, write_random
from tests.runtime.test_folder_pieces import fill


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_encoder(tmp_path_factory.mktemp("sentences"))


def write_sentence_encoder(folder: Path) -> Path:
    """With everything that sentence-transformers puts beside the weights."""
    folder.mkdir(exist_ok=True)
    write_random("bert", folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    modules = [
        {"type": f"x.{kind}", "path": path}
        for kind, path in (
            ("Transformer", ""),
            ("Pooling", "1_Pooling"),
            ("Normalize", "2_Normalize"),
        )
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / POOLING).parent.mkdir()
    (folder / POOLING).write_text(json.dumps({"pooling_mode_max_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
    return folder


def opened(path: Path) -> Seq2SeqCheckpoint:
    found = open_model(path)
    assert isinstance(found, Seq2SeqCheckpoint)
    return found


def manifest_of(checkpoint: Seq2SeqCheckpoint) -> Manifest:
    return make_manifest(checkpoint.model_id, layout_of(checkpoint), files_of(checkpoint))


def test_a_share_from_its_pieces_answers_like_the_whole(folder: Path, tmp_path: Path) -> None:
    whole = opened(folder)
    manifest = manifest_of(whole)
    assert {POOLING, "vocab.txt", "modules.json"} <= {file.name for file in manifest.files}
    assert decode_manifest(manifest.encode()).files == manifest.files
    stages, spans = [], [Span(0, 1), Span(1, LAYERS)]
    for number, span in enumerate(spans):
        partial = PartialModel.create(tmp_path / str(number), manifest, About("s"))
        fill(partial, whole, manifest.opening_pieces)
        assert partial.can_open
        part = opened(partial.path)
        assert part.model_id == whole.model_id
        fill(partial, whole, partial.missing(manifest.pieces_of(share_of(part, span))))
        stages.append(load_stage(part, span))
    reader = Reader.of(opened(tmp_path / "0" / "files"))
    ids = reader.read_cut("a b c d e f g h i j k l")
    assert len(ids) == 9
    cut = Chain(whole, stages).vector(column(ids))
    assert torch.equal(cut, Chain.of(whole).vector(column(ids)))
    assert torch.allclose(cut.norm(), torch.tensor(1.0))


def test_other_pooling_is_another_model(folder: Path, tmp_path: Path) -> None:
    """Or two devices would give different embeddings under one name."""
    write_sentence_encoder(tmp_path / "other")
    assert opened(tmp_path / "other").model_id == opened(folder).model_id
    (tmp_path / "other" / POOLING).write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert opened(tmp_path / "other").model_id != opened(folder).model_id


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../b", "a/b/c", "/etc/x", "a//b", "a/", "a/.b", ".a/b", "a\\b/c"]
)
def test_a_file_that_would_leave_its_folder(folder: Path, name: str) -> None:
    manifest = manifest_of(opened(folder))
    raw, place = manifest.encode(), POOLING.encode()
    assert place in raw
    forged = name.encode().ljust(len(place), b"x")[: len(place)]
    if name == "a/":
        forged = b"x" * (len(place) - 1) + b"/"
    with pytest.raises(ProtocolError, match="no name for a model's file"):
        decode_manifest(raw.replace(place, forged))
