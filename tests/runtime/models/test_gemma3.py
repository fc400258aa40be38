"""Gemma 3's spec from its metadata: the real file's, and the keys that other sizes have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.errors import UnsupportedModel
from runtime.models.gemma3 import read_config, read_gguf
from runtime.models.spec import Activation, RopeSpec
from runtime.weights import Checkpoint
from tests.runtime.tiny_model import tiny_metadata

NONE: frozenset[str] = frozenset()


def metadata(layers: int = 12, **changes: Any) -> dict[str, Any]:
    base = tiny_metadata(layers, 64, heads=4, head_dim=16, ffn=128, context=256, window=8)
    del base["gemma3.attention.sliding_window_pattern"]
    return base | {f"gemma3.{key.replace('__', '.')}": value for key, value in changes.items()}


def test_the_real_file(gemma: Checkpoint) -> None:
    spec = gemma.spec
    assert (len(spec.layers), spec.hidden_size, spec.ffn_size) == (18, 640, 2048)
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (4, 1, 256)
    assert (spec.vocabulary, spec.context, spec.tied_head) == (262_144, 32_768, True)
    assert spec.norm_eps == pytest.approx(1e-6)
    assert spec.query_scale == 1 / 16
    assert spec.embedding_scale == 640**0.5
    assert spec.activation is Activation.GELU_TANH
    full = [index for index, layer in enumerate(spec.layers) if layer.window is None]
    assert full == [5, 11, 17]
    assert {layer.window for layer in spec.layers} == {512, None}
    assert (spec.qk_norm, spec.post_norm, spec.gated, spec.qkv_bias) == (True, True, True, False)
    assert spec.layers[5].rope == RopeSpec(1_000_000.0)
    assert spec.layers[4].rope == RopeSpec(10_000.0)
    assert gemma.name == "Gemma 3 270m"


def windows(**changes: Any) -> list[int | None]:
    return [layer.window for layer in read_gguf(metadata(**changes), NONE).layers]


def test_which_layers_slide() -> None:
    assert windows() == [8, 8, 8, 8, 8, None] * 2
    assert windows(layers=6, attention__sliding_window_pattern=3) == [8, 8, None] * 2
    pattern = np.array([False, True, True])
    assert windows(layers=3, attention__sliding_window_pattern=pattern) == [None, 8, 8]
    assert windows(layers=6, attention__sliding_window=0) == [None] * 6


def test_rope_scaling_stretches_full_layers_only() -> None:
    spec = read_gguf(metadata(rope__scaling__type="linear", rope__scaling__factor=8.0), NONE)
    assert spec.layers[5].rope == RopeSpec(1_000_000.0, factor=8.0)
    assert spec.layers[0].rope == RopeSpec(10_000.0)
    assert read_gguf(metadata(rope__freq_base_swa=5e4), NONE).layers[0].rope == RopeSpec(5e4)


def test_the_27b_model_scales_its_queries_by_the_hidden_size() -> None:
    assert read_gguf(metadata(layers=62), NONE).query_scale == (64 / 4) ** -0.5
    assert read_gguf(metadata(layers=48), NONE).query_scale == 16**-0.5


def test_a_vocabulary_size_in_the_file_counts() -> None:
    assert read_gguf(metadata(vocab_size=999), NONE).vocabulary == 999


CONFIG = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "query_pre_attn_scalar": 16,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def test_a_folder_and_a_gguf_say_the_same() -> None:
    in_gguf = read_gguf(metadata(vocab_size=300), NONE)
    assert read_config(CONFIG, NONE) == in_gguf


def test_rope_as_folders_wrote_it_before_transformers_5_and_since() -> None:
    before = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": LINEAR}
    since = {
        "rope_parameters": {
            "full_attention": LINEAR | {"rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        }
    }
    for written in (before, since):
        layers = read_config(CONFIG | written, NONE).layers
        assert layers[0].rope == RopeSpec(2e4)
        assert layers[5].rope == RopeSpec(5e5, factor=8.0)


def test_which_layers_slide_in_a_folder() -> None:
    kinds = ["full_attention", "sliding_attention"] * 6
    layers = read_config(CONFIG | {"layer_types": kinds}, NONE).layers
    assert [layer.window for layer in layers] == [None, 8] * 6
    layers = read_config(CONFIG | {"sliding_window_pattern": 3}, NONE).layers
    assert [layer.window for layer in layers] == [8, 8, None] * 4


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "use_bidirectional_attention"])
def test_what_our_block_cannot_do_is_refused(key: str) -> None:
    with pytest.raises(UnsupportedModel, match=key):
        read_config(CONFIG | {key: True}, NONE)
