"""Folders of encoders that are damaged, incomplete, in shards, or of a family we do not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.errors import BadModelFile, ModelNotFound, PotluckError, UnsupportedModel
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.pooling import Pooling, PoolingKind, read_pooling
from runtime.seq2seq.reader import column
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.text.json_tokenizer import JsonTokenizer
from runtime.walks.wanted import of_all

pytest.importorskip("transformers")
import safetensors.torch as safetensors

from tests.runtime.chain import Chain
from tests.runtime.library import Embedder
from tests.runtime.random_encoders import ALL, write_random

TOKENS = column([5, 6, 7, 8])


def checkpoint(folder: Path) -> Seq2SeqCheckpoint:
    return Seq2SeqCheckpoint(open_folder(folder))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.save(tensors))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_tensor_is_missing_too_many_and_of_another_shape(name: str, tmp_path: Path) -> None:
    """All three are said in one error."""
    write_random(name, tmp_path)
    gone = changed = ""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        nonlocal gone, changed
        gone, changed = [key for key in sorted(tensors) if ".1." in key and "weight" in key][:2]
        del tensors[gone]
        tensors[changed] = torch.zeros(3, 5)
        tensors["surprise.weight"] = torch.zeros(2)

    edit_tensors(tmp_path, spoil)
    with pytest.raises(BadModelFile) as caught:
        checkpoint(tmp_path)
    said = str(caught.value)
    for prefix in ("bert.", "distilbert.", "model."):
        gone, changed = gone.removeprefix(prefix), changed.removeprefix(prefix)
    assert f"missing: {gone}" in said
    assert "not known: surprise.weight" in said
    assert f"wrong shape: {changed} is [3, 5], not" in said


def test_weights_in_half_precision_and_in_shards(tmp_path: Path) -> None:
    model = write_random("bart", tmp_path / "whole")
    whole = Chain.of(checkpoint(tmp_path / "whole"))
    model.half().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    shards = Chain.of(checkpoint(tmp_path / "shards"))
    assert list(whole.generate(TOKENS, 8)) == list(shards.generate(TOKENS, 8))
    assert whole.checkpoint.model_id != shards.checkpoint.model_id


@pytest.mark.parametrize("name", ["t5-1.0", "bart", "whisper", "bert-masked"])
def test_a_tied_copy_may_be_there_or_not(name: str, tmp_path: Path) -> None:
    """Older checkpoints hold the embedding once more as the head."""
    copies = {
        "t5-1.0": ("shared.weight", ["encoder.embed_tokens.weight", "lm_head.weight"]),
        "bart": ("model.shared.weight", ["model.decoder.embed_tokens.weight", "lm_head.weight"]),
        "whisper": ("model.decoder.embed_tokens.weight", ["proj_out.weight"]),
        "bert-masked": (
            "bert.embeddings.word_embeddings.weight",
            ["cls.predictions.decoder.weight"],
        ),
    }
    write_random(name, tmp_path)
    before = checkpoint(tmp_path).load_exit()
    original, others = copies[name]

    def copy(tensors: dict[str, torch.Tensor]) -> None:
        for other in others:
            tensors[other] = tensors[original].clone()

    edit_tensors(tmp_path, copy)
    after = checkpoint(tmp_path).load_exit()
    assert before is not None
    assert after is not None
    hidden = torch.randn(3, 32)
    assert torch.equal(before(hidden), after(hidden))


def test_a_family_that_we_do_not_have(tmp_path: Path) -> None:
    write_random("bert", tmp_path)
    edit_config(tmp_path, model_type="mamba")
    with pytest.raises(UnsupportedModel) as caught:
        checkpoint(tmp_path)
    assert "'mamba' is no encoder we know; known: bart, bert, distilbert, t5, whisper" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("bert", {"hidden_size": None}, BadModelFile, "no hidden_size"),
        ("bert", {"hidden_size": "32"}, BadModelFile, "hidden_size"),
        ("bert", {"num_attention_heads": 5}, BadModelFile, "5 heads do not divide a width of 32"),
        ("bert", {"num_hidden_layers": 10**9}, BadModelFile, "from 1 to 1024"),
        ("bert", {"hidden_act": "mish"}, UnsupportedModel, "'mish'"),
        ("bert", {"position_embedding_type": "relative_key"}, UnsupportedModel, "absolute"),
        ("bert", {"model_type": 5}, BadModelFile, "model_type"),
        ("t5-1.0", {"feed_forward_proj": "twice-relu"}, UnsupportedModel, "twice-relu"),
        ("t5-1.0", {"relative_attention_num_buckets": 2}, BadModelFile, "4 buckets or more"),
        ("t5-1.0", {"relative_attention_max_distance": 4}, BadModelFile, "largest distance"),
        ("whisper", {"num_mel_bins": 0}, BadModelFile, "num_mel_bins"),
        ("bart", {"decoder_layers": 4}, BadModelFile, "missing: decoder.layers.3"),
    ],
)
def test_a_config_that_makes_no_sense(
    name: str, changes: dict[str, Any], error: type[PotluckError], said: str, tmp_path: Path
) -> None:
    write_random(name, tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=said):
        checkpoint(tmp_path)


@pytest.mark.parametrize("value", [[5, 99], [-1], ["x"], [True]])
def test_rules_for_tokens_that_there_are_not(value: list[Any], tmp_path: Path) -> None:
    write_random("whisper", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": value}))
    with pytest.raises(BadModelFile, match="suppress_tokens: expected token ids from 0 to 98"):
        checkpoint(tmp_path)


def test_a_decoder_that_does_not_know_how_to_begin(tmp_path: Path) -> None:
    write_random("t5-1.0", tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    edit_config(tmp_path, decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(BadModelFile, match="decoder_start_token_id"):
        checkpoint(tmp_path)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="has no config.json"):
        open_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "bert"}', "null", "[" * 100_000])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadModelFile):
        checkpoint(tmp_path)


POOLING = "sentence_transformers.models.Pooling"
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def write_pooling(folder: Path, modules: list[Any], config: dict[str, Any]) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (MEAN, PoolingKind.MEAN),
        ({"pooling_mode_max_tokens": True}, PoolingKind.MAX),
        ({"pooling_mode_cls_token": True}, PoolingKind.FIRST),
        ({"pooling_mode": "mean"}, PoolingKind.MEAN),
    ],
)
@pytest.mark.parametrize("normalised", [False, True])
def test_pools_as_its_config_says(
    config: dict[str, Any], kind: PoolingKind, normalised: bool, tmp_path: Path
) -> None:
    modules = [{"type": "x.Transformer", "path": ""}, {"type": POOLING, "path": "1_Pooling"}]
    modules += [{"type": "x.Normalize", "path": "2"}] if normalised else []
    write_pooling(tmp_path, modules, config)
    assert read_pooling(tmp_path) == Pooling(kind, normalised)
    hidden = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    pooling = Pooling(kind, normalised)
    pooled = pooling.embedding(of_all(hidden, pooling.wanted))
    plain = {"mean": [1.5, 2.0], "max": [3.0, 4.0], "cls": [3.0, 0.0]}[kind]
    expected = torch.tensor([plain]) / (torch.tensor(plain).norm() if normalised else 1)
    assert torch.allclose(pooled, expected)


@pytest.mark.parametrize(
    ("modules", "config", "error"),
    [
        ([{"type": POOLING, "path": "../1_Pooling"}], MEAN, BadModelFile),
        ([{"type": POOLING, "path": "gone"}], MEAN, BadModelFile),
        ([{"type": POOLING}], MEAN, BadModelFile),
        (["Pooling"], MEAN, BadModelFile),
        ([{"type": "x.Dense", "path": "2_Dense"}], MEAN, UnsupportedModel),
        ([{"type": POOLING, "path": "1_Pooling"}], {}, UnsupportedModel),
        (
            [{"type": POOLING, "path": "1_Pooling"}],
            MEAN | {"pooling_mode_max_tokens": True},
            UnsupportedModel,
        ),
    ],
)
def test_a_pooling_that_we_do_not_have(
    modules: list[Any], config: dict[str, Any], error: type[PotluckError], tmp_path: Path
) -> None:
    write_pooling(tmp_path, modules, config)
    with pytest.raises(error):
        read_pooling(tmp_path)


def test_an_encoder_that_says_nothing_of_pooling_takes_the_mean(tmp_path: Path) -> None:
    write_random("distilbert", tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    embedded = Embedder(tmp_path).embed(["a b c", "d"])
    hidden = Chain.of(checkpoint(tmp_path)).answer(column([2, 4, 5, 6, 3]))
    assert torch.allclose(embedded[0], hidden.mean(dim=0))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"neither tokenizer.json nor vocab.txt"):
        JsonTokenizer.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("vocab.txt", b"\xff\xfe"),
        ("vocab.txt", b"a\nb\n"),
    ],
)
def test_a_damaged_tokenizer(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadModelFile):
        JsonTokenizer.open(tmp_path)
