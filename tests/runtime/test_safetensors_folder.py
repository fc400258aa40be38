"""Folders of safetensors files: every lie in a header, an index or a folder is one clear error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.errors import BadModelFile, GenerationFailed, ModelNotFound, UnsupportedModel
from planner.plan import Span
from runtime.compute.precision import Precision
from runtime.formats.gguf import GGMLType
from runtime.formats.quantize import dequantise
from runtime.formats.safetensors_folder import SafetensorsFolder
from runtime.weights import Checkpoint
from tests.runtime.plain import plain
from tests.runtime.random_checkpoints import write_folder
from tests.runtime.test_weights import copy_with_holes

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
ENTRY = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}


def file_of(header: Any, data: bytes = VALUES.tobytes(), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def folder_of(path: Path, content: bytes | None, name: str = "model.safetensors") -> Path:
    (path / "config.json").write_text("{}")
    if content is not None:
        (path / name).write_bytes(content)
    return path


def test_reads_the_three_types(tmp_path: Path) -> None:
    half = VALUES.astype("<f2").tobytes()
    upper = (VALUES.view("<u4") >> 16).astype("<u2").tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a": ENTRY,
        "b": {"dtype": "F16", "shape": [3, 4], "data_offsets": [48, 72]},
        "c": {"dtype": "BF16", "shape": [12], "data_offsets": [72, 96]},
    }
    folder = SafetensorsFolder.open(
        folder_of(tmp_path, file_of(header, VALUES.tobytes() + half + upper))
    )
    for name in "abc":
        info = folder.tensors[name]
        values = dequantise(folder.raw(name), info.type, info.shape)
        assert torch.equal(values.view(3, 4), torch.from_numpy(VALUES))
    assert folder.tensors["c"].type is GGMLType.BF16
    with pytest.raises(BadModelFile, match="no tensor 'd'"):
        folder.raw("d")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"1234", "has 4 bytes"),
        (file_of({"a": ENTRY}, length=1 << 40), "its header claims 1099511627776 bytes"),
        (file_of(b"{"), "its header is no JSON"),
        (file_of(b'{"a":1,"a":1}'), "a name comes twice"),
        (file_of(b"[" * 100_000), "its header is no JSON"),
        (file_of([1]), "no JSON object"),
        (file_of({"a": 1}), "tensor 'a' is described by 1"),
        (file_of({"a": ENTRY | {"shape": [3, -4]}}), "is described by"),
        (file_of({"a": ENTRY | {"shape": [3, True]}}), "is described by"),
        (file_of({"a": ENTRY | {"shape": [0, 4]}}), "is described by"),
        (file_of({"a": ENTRY | {"data_offsets": [48, 0]}}), "is described by"),
        (file_of({"a": ENTRY | {"shape": [3, 5]}}), r"of \[3, 5\] has 48 bytes"),
        (file_of({"a": ENTRY | {"shape": [1 << 62, 1 << 62]}}), "has 48 bytes"),
        (file_of({"a": ENTRY}, b"too short"), "ends 39 bytes behind its end"),
        (file_of({"a": ENTRY, "b": ENTRY}), "overlaps the one before it"),
        (file_of({str(i): ENTRY for i in range(1 << 16)} | {"a": ENTRY}), "names 65537 tensors"),
    ],
)
def test_a_damaged_file_is_described(tmp_path: Path, content: bytes, text: str) -> None:
    with pytest.raises(BadModelFile, match=text):
        SafetensorsFolder.open(folder_of(tmp_path, content))


@given(noise=st.binary(max_size=200), at=st.integers(0, 150))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_is_never_more_than_a_bad_file(tmp_path: Path, noise: bytes, at: int) -> None:
    content = file_of({"a": ENTRY})
    folder_of(tmp_path, content[:at] + noise + content[at + len(noise) :])
    try:
        folder = SafetensorsFolder.open(tmp_path)
        for name in folder.tensors:
            folder.raw(name)
    except BadModelFile:
        pass


def test_what_is_no_folder_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        SafetensorsFolder.open(tmp_path / "gone")
    with pytest.raises(BadModelFile, match="has no config.json"):
        SafetensorsFolder.open(tmp_path)
    folder_of(tmp_path, None)
    with pytest.raises(BadModelFile, match="neither model.safetensors nor"):
        SafetensorsFolder.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UnsupportedModel, match="take the model as safetensors"):
        SafetensorsFolder.open(tmp_path)


# --- several files --------------------------------------------------------------------------------


def sharded(path: Path, weight_map: Any, **files: bytes) -> Path:
    folder_of(path, None)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, content in files.items():
        (path / f"{name}.safetensors").write_bytes(content)
    return path


def test_tensors_of_several_files(tmp_path: Path) -> None:
    sharded(
        tmp_path,
        {"a": "1.safetensors", "b": "2.safetensors"},
        **{"1": file_of({"a": ENTRY}), "2": file_of({"b": ENTRY})},
    )
    folder = SafetensorsFolder.open(tmp_path)
    assert folder.range_of("b").file == "2.safetensors"
    assert bytes(folder.raw("b")) == VALUES.tobytes()


@pytest.mark.parametrize(
    ("weight_map", "text"),
    [
        ({"b": "2.safetensors", "c": "3.safetensors"}, "lacks 3.safetensors: copy all"),
        ({"a": "1.safetensors"}, "lacks 1.safetensors"),
        ({"a": "2.safetensors"}, "do not hold what .* says, such as 'a'"),
        ({"b": "2.safetensors", "c": "2.safetensors"}, "do not hold what .* such as 'c'"),
        ({"b": "../2.safetensors"}, "names a safetensors file of this folder"),
        ({"b": "2.bin"}, "names a safetensors file of this folder"),
        ({"b": 2}, "names a safetensors file of this folder"),
        ([], "names a safetensors file of this folder"),
        ({str(i): f"{i}.safetensors" for i in range(2000)}, "names more than 1024 files"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, weight_map: Any, text: str) -> None:
    sharded(tmp_path, weight_map, **{"2": file_of({"b": ENTRY})})
    with pytest.raises(BadModelFile, match=text):
        SafetensorsFolder.open(tmp_path)


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    twice = {"1": file_of({"a": ENTRY}), "2": file_of({"a": ENTRY})}
    sharded(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, **twice)
    with pytest.raises(BadModelFile, match="'a' is in 1.safetensors and in 2.safetensors"):
        SafetensorsFolder.open(tmp_path)


# --- as a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several files, as a large model has."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "Tiny-Qwen3"
    write_folder("qwen3", folder, max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def changed(source: Path, target: Path, **config: Any) -> Path:
    """A copy whose config says something else; None leaves a key out."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    entries = json.loads((source / "config.json").read_text()) | config
    kept = {key: value for key, value in entries.items() if value is not None}
    (target / "config.json").write_text(json.dumps(kept))
    return target


def test_a_model_is_called_as_its_folder(tmp_path: Path, qwen: Path) -> None:
    assert Checkpoint.open(qwen).name == "Tiny-Qwen3"
    cached = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots"
    cached.mkdir(parents=True)
    assert Checkpoint.open(changed(qwen, cached / "c1899de2")).name == "Qwen3-0.6B"


def test_a_copy_with_holes_is_the_same_model_for_its_share(tmp_path: Path, qwen: Path) -> None:
    whole = Checkpoint.open(qwen, Precision.FP32)
    copy_with_holes(whole, Span(0, 2), qwen, tmp_path)
    part = Checkpoint.open(tmp_path, Precision.FP32)
    assert part.model_id == whole.model_id
    for name, tensor in part.load_layer(1).state_dict().items():
        assert torch.equal(plain(tensor), plain(whole.load_layer(1).state_dict()[name]))
    ids = torch.arange(5)
    assert torch.equal(part.embed(ids, ids), whole.embed(ids, ids))
    holed, full = (plain(one.load_layer(3).mlp.down.weight) for one in (part, whole))
    assert not holed.equal(full)


def test_the_fingerprint_is_of_weights_and_config(tmp_path: Path, qwen: Path) -> None:
    same = changed(qwen, tmp_path / "same")
    (same / "config.json").write_bytes((qwen / "config.json").read_bytes())
    assert Checkpoint.open(same).model_id == Checkpoint.open(qwen).model_id
    (same / "tokenizer.json").write_text("{}")
    assert Checkpoint.open(same).model_id == Checkpoint.open(qwen).model_id
    other = changed(qwen, tmp_path / "other", rms_norm_eps=1e-5)
    assert Checkpoint.open(other).model_id != Checkpoint.open(qwen).model_id
    file = max(same.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\x80?")
    assert Checkpoint.open(same).model_id != Checkpoint.open(qwen).model_id


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"num_hidden_layers": 5}, "missing: model.layers.4"),
        ({"num_hidden_layers": 3}, "not known: model.layers.3"),
        (
            {"intermediate_size": 97},
            "wrong shape: .*mlp.down_proj.weight is .64, 96., not .64, 97.",
        ),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": "64"}, "hidden_size: expected a whole number"),
        ({"num_key_value_heads": 3}, "a multiple of KV heads"),
        ({"use_sliding_window": 1}, "use_sliding_window: expected true or false"),
        ({"rope_parameters": []}, "rope_parameters: expected an object"),
        ({"rope_parameters": {"rope_type": "linear"}}, "has no factor"),
        ({"use_sliding_window": True, "layer_types": ["full"]}, "layer_types: expected 4 texts"),
        ({"model_type": None}, "does not say its model_type"),
    ],
)
def test_a_config_that_does_not_fit(
    tmp_path: Path, qwen: Path, config: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadModelFile, match=text):
        Checkpoint.open(changed(qwen, tmp_path / "m", **config))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "mamba"}, "'mamba' is not known; known: gemma3_text, gpt2, llama, opt, qw"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not known"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "'dynamic' is not known"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'; known are gelu, "),
    ],
)
def test_what_we_do_not_have_is_named(
    tmp_path: Path, qwen: Path, config: dict[str, Any], text: str
) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        Checkpoint.open(changed(qwen, tmp_path / "m", **config))


def test_weights_of_a_type_that_we_do_not_read(tmp_path: Path, qwen: Path) -> None:
    folder = changed(qwen, tmp_path / "m")
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(UnsupportedModel, match="is stored as I32; known are F32, F16 and BF16"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("key", ["do_layer_norm_before", "word_embed_proj_dim"])
def test_the_odd_opt_is_refused(tmp_path: Path, key: str) -> None:
    pytest.importorskip("transformers")
    plain = write_folder("opt", tmp_path / "opt")
    odd = changed(plain, tmp_path / "odd", **{key: False if key.startswith("do") else 32})
    with pytest.raises(UnsupportedModel, match=f"{key} is .*; only"):
        Checkpoint.open(odd)


def test_a_position_that_no_row_belongs_to(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    checkpoint = Checkpoint.open(write_folder("opt", tmp_path / "opt"))
    last = torch.tensor([255])
    assert checkpoint.embed(torch.tensor([3]), last).shape == (1, 64)
    with pytest.raises(GenerationFailed, match="positions lie between 0 and 255"):
        checkpoint.embed(torch.tensor([3]), last + 1)


def test_leftovers_in_old_files_are_no_fault(tmp_path: Path) -> None:
    """GPT-2 came with the triangle that masks the future, and without the prefix."""
    safetensors = pytest.importorskip("safetensors.torch")
    pytest.importorskip("transformers")
    folder = write_folder("gpt2", tmp_path / "gpt2")
    tensors = safetensors.load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for index in range(4):
        old[f"h.{index}.attn.bias"] = torch.ones(1, 1, 256, 256, dtype=torch.uint8)
        old[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    new = Checkpoint.open(folder, Precision.FP32)
    safetensors.save_file(old, folder / "model.safetensors")
    again = Checkpoint.open(folder, Precision.FP32)
    for name, tensor in again.load_layer(2).state_dict().items():
        assert torch.equal(plain(tensor), plain(new.load_layer(2).state_dict()[name]))
