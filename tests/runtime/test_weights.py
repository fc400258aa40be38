"""Checkpoints: checked as a whole when opened, read part by part, weighed to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mesh.errors import BadModelFile, GenerationFailed, UnsupportedModel
from planner.plan import Span
from runtime.compute.precision import Precision
from runtime.formats.gguf import GGUFFile
from runtime.weights import Checkpoint
from tests.runtime.gguf_writer import Stored, f32, write_gguf
from tests.runtime.plain import plain
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
    return Checkpoint.open(path, Precision.FP32)


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> WholeModel:
    """In fp32, whatever is usual."""
    return WholeModel(Checkpoint.open(tiny_path, Precision.FP32))


def held_bytes(module: nn.Module) -> int:
    """All tensors in memory: parameters, and what linear maps hold in their place."""
    return sum(
        array.nbytes
        for one in module.modules()
        for value in vars(one).values()
        for array in arrays(value)
    )


def arrays(value: Any) -> Iterator[torch.Tensor | np.ndarray]:
    match value:
        case torch.Tensor() | np.ndarray():
            yield value
        case tuple():
            for one in value:
                yield from arrays(one)
        case nn.Module():
            return  # it is among the modules
        case dict():
            yield from arrays(tuple(value.values()))
        case _ if is_dataclass(value):
            yield from arrays(tuple(getattr(value, field.name) for field in fields(value)))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.INT8])
def test_weighs_what_it_holds(tiny_path: Path, precision: Precision) -> None:
    checkpoint = Checkpoint.open(tiny_path, precision)
    profile = checkpoint.profile()
    for index, layer in enumerate(profile.layers):
        assert layer.weight_bytes == held_bytes(checkpoint.load_layer(index))
    assert profile.head_bytes == held_bytes(checkpoint.load_head())


def test_says_what_the_planner_needs(tiny: WholeModel) -> None:
    profile = tiny.checkpoint.profile()
    assert [layer.window for layer in profile.layers] == [8, None, 8, None]
    cache = tiny.new_cache()
    tiny.prefill(list(range(256)), cache)
    for layer_cache, layer in zip(cache.layers, profile.layers, strict=True):
        assert layer_cache.size_bytes == 256 * layer.kv_bytes_per_token
    assert (profile.hidden_size, profile.context) == (64, 256)
    assert profile.vocabulary == tiny.head.output.rows
    assert profile.name == "Tiny Gemma"


def test_the_file_without_a_name_is_called_by_its_path(tmp_path: Path) -> None:
    metadata = {key: value for key, value in METADATA.items() if key != "general.name"}
    assert opened(tmp_path, metadata).name == "m"


def test_embeds_scaled_rows(tiny: WholeModel) -> None:
    ids = torch.tensor([5, 0, 5], dtype=torch.int32)
    rows = plain(tiny.head.output.weight)[ids] * 64**0.5
    assert torch.equal(tiny.checkpoint.embed(ids, torch.arange(3)), rows)
    assert tiny.checkpoint.embed(ids[:0], ids[:0]).shape == (0, 64)


@pytest.mark.parametrize("token", [-1, 100_000])
def test_a_token_outside_the_vocabulary(tiny: WholeModel, token: int) -> None:
    with pytest.raises(GenerationFailed, match="token ids lie between"):
        tiny.checkpoint.embed(torch.tensor([1, token]), torch.arange(2))


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
    checkpoint = Checkpoint.open(tiny_path, Precision.FP32)
    block = checkpoint.load_layer(0)
    checkpoint.close()
    assert torch.equal(
        plain(block.attention.qkv.weight), plain(tiny.blocks[0].attention.qkv.weight)
    )


def test_a_head_of_its_own(tmp_path: Path) -> None:
    vocabulary = TENSORS["token_embd.weight"].shape[0]
    output = np.random.default_rng(0).standard_normal((vocabulary, 64)).astype(np.float32)
    checkpoint = opened(tmp_path, tensors={**TENSORS, "output.weight": f32(output)})
    assert not checkpoint.spec.tied_head
    assert torch.equal(plain(checkpoint.load_head().output.weight), torch.from_numpy(output))


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
        ("gemma3.attention.value_length", 8, "the same size for keys and values"),
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
        (
            "general.architecture",
            "mamba",
            "'mamba' is not known; known: gemma3, gpt2, llama, qwen2",
        ),
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


# --- shares ---------------------------------------------------------------------------------------


def test_a_stage_needs_its_own_tensors_and_the_ends_theirs(tiny_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_path)
    assert {name.split(".")[1] for name in tensors_of(checkpoint, Span(1, 3))} == {"1", "2"}
    first, last = tensors_of(checkpoint, Span(0, 1)), tensors_of(checkpoint, Span(3, 4))
    assert set(first) - set(last) >= {"blk.0.attn_q.weight"}
    assert "token_embd.weight" in first
    assert {"token_embd.weight", "output_norm.weight"} <= set(last)
    assert len(tensors_of(checkpoint, Span(0, 4))) == len(checkpoint.file.tensors)


def tensors_of(checkpoint: Checkpoint, span: Span) -> set[str]:
    """Those that are read whole, beside what opens the file."""
    needed = checkpoint.ranges_of(span)[len(checkpoint.file.header_ranges()) :]
    return {name for name in checkpoint.file.tensors if checkpoint.file.range_of(name) in needed}


def copy_with_holes(checkpoint: Checkpoint, span: Span, source: Path, target: Path) -> None:
    """What a device without the model fetches: the ranges, into files that are as long."""
    for name, size in checkpoint.file.files().items():
        with (target / name).open("wb") as file:
            file.truncate(size)
    for piece in checkpoint.ranges_of(span):
        with (source / piece.file).open("rb") as file:
            file.seek(piece.offset)
            data = file.read(piece.size_bytes)
        with (target / piece.file).open("r+b") as file:
            file.seek(piece.offset)
            file.write(data)


def test_a_copy_with_holes_is_the_same_model_for_its_share(tmp_path: Path, tiny_path: Path) -> None:
    whole = Checkpoint.open(tiny_path, Precision.FP32)
    copy_with_holes(whole, Span(2, 4), tiny_path.parent, tmp_path)
    part = Checkpoint.open(tmp_path / tiny_path.name, Precision.FP32)
    assert part.model_id == whole.model_id
    assert part.load_layer(3).state_dict().keys() == whole.load_layer(3).state_dict().keys()
    for name, tensor in part.load_layer(3).state_dict().items():
        assert torch.equal(plain(tensor), plain(whole.load_layer(3).state_dict()[name]))
    assert torch.equal(
        plain(part.load_head().output.weight), plain(whole.load_head().output.weight)
    )
    holed, full = (plain(one.load_layer(0).mlp.down.weight) for one in (part, whole))
    assert not holed.equal(full)
