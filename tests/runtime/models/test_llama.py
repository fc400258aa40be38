"""Llama's descendants: their specs from either format's metadata, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models import FOLDER_FAMILIES, GGUF_FAMILIES, llama, qwen2, qwen3
from runtime.models.spec import Activation, Llama3Scaling, RopeSpec

NONE: frozenset[str] = frozenset()
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
GGUF = {
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 3,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "vocab_size": 100,
    "context_length": 512,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def gguf(prefix: str, **changes: Any) -> dict[str, Any]:
    entries = GGUF | {key.replace("__", "."): value for key, value in changes.items()}
    return {f"{prefix}.{key}": value for key, value in entries.items()}


@pytest.mark.parametrize("family", [llama, qwen2])
def test_both_formats_say_the_same(family: Any) -> None:
    prefix = family.ARCHITECTURE
    tensors = frozenset({"output.weight"} | ({"blk.0.attn_q.bias"} if prefix == "qwen2" else set()))
    assert family.read_gguf(gguf(prefix), tensors) == family.read_config(CONFIG, NONE)


def test_qwen_3_has_heads_of_a_size_of_their_own() -> None:
    spec = qwen3.read_config(CONFIG, NONE)
    assert (spec.head_dim, spec.query_size, spec.qk_norm) == (128, 512, True)
    same = gguf("qwen3", attention__key_length=128, attention__value_length=128)
    assert qwen3.read_gguf(same, frozenset({"output.weight"})) == spec


def test_what_absent_keys_mean() -> None:
    config = {key: CONFIG[key] for key in CONFIG if key != "num_key_value_heads"}
    spec = llama.read_config(config, NONE)
    assert (spec.kv_heads, spec.head_dim, spec.activation) == (4, 16, Activation.SILU)
    assert (spec.tied_head, spec.qkv_bias, spec.layers[0].rope) == (False, False, RopeSpec(1e4))
    spec = llama.read_gguf(gguf("llama"), NONE)
    assert spec.tied_head
    assert spec.layers[0].rope == RopeSpec(1e4)


def test_rope_as_folders_wrote_it_before_transformers_5_and_since() -> None:
    before = CONFIG | {"rope_theta": 5e5, "rope_scaling": LLAMA3}
    since = CONFIG | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}
    expected = RopeSpec(5e5, scaling=Llama3Scaling(8.0, 1.0, 4.0, 128))
    assert llama.read_config(before, NONE).layers[2].rope == expected
    assert llama.read_config(since, NONE).layers[2].rope == expected
    linear = CONFIG | {"rope_scaling": {"type": "linear", "factor": 2}}
    assert llama.read_config(linear, NONE).layers[0].rope == RopeSpec(1e4, factor=2.0)
    assert llama.read_gguf(
        gguf("llama", rope__scaling__type="linear", rope__scaling__factor=2.0), NONE
    ).layers[0].rope == RopeSpec(1e4, factor=2.0)


def test_late_layers_of_qwen_2_slide_where_they_are_asked_to() -> None:
    config = CONFIG | {"sliding_window": 7, "max_window_layers": 1}
    assert [layer.window for layer in qwen2.read_config(config, NONE).layers] == [None] * 3
    config |= {"use_sliding_window": True}
    assert [layer.window for layer in qwen2.read_config(config, NONE).layers] == [None, 7, 7]
    config |= {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    assert [layer.window for layer in qwen2.read_config(config, NONE).layers] == [7, None, None]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"expert_count": 8}, "llama.expert_count is 8; only 0 is known"),
        ({"rope__dimension_count": 8}, "rope.dimension_count is 8; only 16"),
        ({"rope__scaling__type": "yarn"}, "rope scaling 'yarn' is not known; .* 'linear' and 'no"),
    ],
)
def test_a_gguf_that_our_block_cannot_run(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        llama.read_gguf(gguf("llama", **changes), NONE)


@pytest.mark.parametrize(
    ("rope", "text"),
    [
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor is below high_freq_factor"),
        (LLAMA3 | {"factor": 0}, "factor: expected a number above 0"),
        (LLAMA3 | {"original_max_position_embeddings": 1.5}, "expected a whole number"),
        (LLAMA3 | {"rope_theta": "1e4"}, "rope_theta: expected a number"),
        ("llama3", "rope_scaling: expected an object"),
    ],
)
def test_an_impossible_rope(rope: Any, text: str) -> None:
    with pytest.raises(BadModelFile, match=text):
        llama.read_config(CONFIG | {"rope_scaling": rope}, NONE)


def test_all_families_are_in_the_tables() -> None:
    assert sorted(GGUF_FAMILIES) == ["gemma3", "gpt2", "llama", "qwen2", "qwen3"]
    assert sorted(FOLDER_FAMILIES) == ["gemma3_text", "gpt2", "llama", "opt", "qwen2", "qwen3"]
