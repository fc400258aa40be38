"""Checkpoints: checked as a whole when opened, read part by part, weighed to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mesh.errors import BadModelFile, GenerationFailed, UnsupportedModel
from runtime.gguf import GGUFFile
from runtime.weights import Checkpoint
from tests.runtime.gguf_writer import Stored, f32, write_gguf
from tests.runtime.tiny_model import tiny_metadata, tiny_tensors
from tests.runtime.whole_model import WholeModel

METADATA = tiny_metadata(2, hidden=64, heads=4, head_dim=16, ffn=128, context=256, window=8)
TENSORS = tiny_tensors(2, hidden=64, heads=4, head_dim=16, ffn=128, seed=1)


def opened(
    folder: Path, metadata: dict[str, Any] | None = None, tensors: dict[str, Stored] | None = None
) -> Checkpoint:
    path = write_gguf(
        folder / "m.gguf",
        METADATA if metadata is None else metadata,
        TENSORS if tensors is None else tensors,
    )
    return Checkpoint.open(path)


def test_weighs_what_it_holds(tiny: WholeModel) -> None:
    profile = tiny.checkpoint.profile()
    for block, layer in zip(tiny.blocks, profile.layers, strict=True):
        assert layer.weight_bytes == sum(tensor.nbytes for tensor in block.parameters())
    assert profile.head_bytes == sum(tensor.nbytes for tensor in tiny.head.parameters())
    assert [layer.window for layer in profile.layers] == [8, None, 8, None]
    cache = tiny.new_cache()
    tiny.prefill(list(range(256)), cache)
    for layer_cache, layer in zip(cache.layers, profile.layers, strict=True):
        assert layer_cache.size_bytes == 256 * layer.kv_bytes_per_token
    assert (profile.hidden_size, profile.context) == (64, 256)
    assert profile.vocabulary == tiny.head.weight.shape[0]
    assert profile.name == "Tiny Gemma"


def test_the_file_without_a_name_is_called_by_its_path(tmp_path: Path) -> None:
    metadata = {key: value for key, value in METADATA.items() if key != "general.name"}
    assert opened(tmp_path, metadata).name == "m"


def test_embeds_scaled_rows(tiny: WholeModel) -> None:
    ids = torch.tensor([5, 0, 5], dtype=torch.int32)
    rows = tiny.head.weight[ids] * 64**0.5
    assert torch.equal(tiny.checkpoint.embed(ids), rows)
    assert tiny.checkpoint.embed(ids[:0]).shape == (0, 64)


@pytest.mark.parametrize("token", [-1, 100_000])
def test_a_token_outside_the_vocabulary(tiny: WholeModel, token: int) -> None:
    with pytest.raises(GenerationFailed, match="token ids lie between"):
        tiny.checkpoint.embed(torch.tensor([1, token]))


def test_loading_a_layer_touches_only_its_tensors(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(tiny_path)
    touched: list[str] = []
    raw = GGUFFile.raw

    def spy(file: GGUFFile, name: str) -> Any:
        touched.append(name)
        return raw(file, name)

    monkeypatch.setattr(GGUFFile, "raw", spy)
    checkpoint.load_layer(2)
    assert len(touched) == 13
    assert all(name.startswith("blk.2.") for name in touched)
    touched.clear()
    checkpoint.load_head()
    assert sorted(touched) == ["output_norm.weight", "token_embd.weight"]


def test_what_was_loaded_outlives_the_file(tiny_path: Path, tiny: WholeModel) -> None:
    checkpoint = Checkpoint.open(tiny_path)
    block = checkpoint.load_layer(0)
    checkpoint.close()
    assert torch.equal(block.attention.qkv, tiny.blocks[0].attention.qkv)


def test_a_head_of_its_own(tmp_path: Path) -> None:
    vocabulary = TENSORS["token_embd.weight"].shape[0]
    output = np.random.default_rng(0).standard_normal((vocabulary, 64)).astype(np.float32)
    checkpoint = opened(tmp_path, tensors={**TENSORS, "output.weight": f32(output)})
    assert not checkpoint.spec.tied_head
    assert torch.equal(checkpoint.load_head().weight, torch.from_numpy(output))


def test_capped_logits(tmp_path: Path) -> None:
    capped = opened(tmp_path, {**METADATA, "gemma3.final_logit_softcapping": 3.0}).load_head()
    plain = opened(tmp_path).load_head()
    hidden = torch.randn(2, 64)
    assert torch.allclose(capped.logits(hidden), 3 * torch.tanh(plain.logits(hidden) / 3))


def test_missing_extra_and_misshaped_tensors_are_named(tmp_path: Path) -> None:
    tensors = {**TENSORS, "blk.9.odd": f32(np.zeros(4)), "output_norm.weight": f32(np.zeros(63))}
    del tensors["blk.1.ffn_up.weight"]
    with pytest.raises(
        BadModelFile,
        match=r"missing: blk.1.ffn_up.weight; not known: blk.9.odd; "
        r"wrong shape: output_norm.weight is \[63\], not \[64\]",
    ):
        opened(tmp_path, tensors=tensors)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("gemma3.block_count", None, "has no gemma3.block_count"),
        ("gemma3.block_count", 0, "from 1 to 1024, got 0"),
        ("gemma3.block_count", 3, "missing: blk.2"),
        ("gemma3.embedding_length", "64", "from 1 to .* got '64'"),
        ("gemma3.attention.head_count_kv", 3, "a multiple of KV heads"),
        ("gemma3.attention.value_length", 8, "the same for keys and values"),
        ("gemma3.attention.layer_norm_rms_epsilon", 0.0, "a number above 0"),
        ("gemma3.rope.freq_base", float("inf"), "expected a number"),
        ("gemma3.attention.sliding_window", [1], "a whole number from 0"),
        ("gemma3.attention.sliding_window_pattern", [True], "2 truth values"),
        ("gemma3.rope.scaling.type", 1, "expected a text"),
        ("tokenizer.ggml.tokens", None, "has no tokenizer.ggml.tokens"),
        ("general.architecture", None, "general.architecture"),
    ],
)
def test_impossible_metadata_are_named(tmp_path: Path, key: str, value: Any, text: str) -> None:
    metadata = {**METADATA, key: value}
    if value is None:
        del metadata[key]
    with pytest.raises(BadModelFile, match=text):
        opened(tmp_path, metadata)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("general.architecture", "mamba", "'mamba' is not known; known: gemma3"),
        ("gemma3.rope.scaling.type", "yarn", "known are 'linear' and 'none'"),
        ("gemma3.attn_logit_softcapping", 50.0, "capped attention"),
    ],
)
def test_what_we_do_not_have_is_named(tmp_path: Path, key: str, value: Any, text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        opened(tmp_path, {**METADATA, key: value})


def test_the_tiny_model_is_the_same_each_time(tmp_path: Path, tiny_path: Path) -> None:
    from tests.runtime.tiny_model import write_tiny_gemma

    assert write_tiny_gemma(tmp_path / "a.gguf").read_bytes() == tiny_path.read_bytes()
    other = write_tiny_gemma(tmp_path / "b.gguf", seed=1)
    assert Checkpoint.open(other).model_id != Checkpoint.open(tiny_path).model_id
