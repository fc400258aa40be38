"""Gemma 3's spec from its metadata: the real file's, and the keys that other sizes have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.models.gemma3 import read_spec
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
    assert spec.layers[5].rope == RopeSpec(1_000_000.0)
    assert spec.layers[4].rope == RopeSpec(10_000.0)
    assert gemma.name == "Gemma 3 270m"


def windows(**changes: Any) -> list[int | None]:
    return [layer.window for layer in read_spec(metadata(**changes), NONE).layers]


def test_which_layers_slide() -> None:
    assert windows() == [8, 8, 8, 8, 8, None] * 2
    assert windows(layers=6, attention__sliding_window_pattern=3) == [8, 8, None] * 2
    pattern = np.array([False, True, True])
    assert windows(layers=3, attention__sliding_window_pattern=pattern) == [None, 8, 8]
    assert windows(layers=6, attention__sliding_window=0) == [None] * 6


def test_rope_scaling_stretches_full_layers_only() -> None:
    spec = read_spec(metadata(rope__scaling__type="linear", rope__scaling__factor=8.0), NONE)
    assert spec.layers[5].rope == RopeSpec(1_000_000.0, factor=8.0)
    assert spec.layers[0].rope == RopeSpec(10_000.0)
    assert read_spec(metadata(rope__freq_base_swa=5e4), NONE).layers[0].rope == RopeSpec(5e4)


def test_the_27b_model_scales_its_queries_by_the_hidden_size() -> None:
    assert read_spec(metadata(layers=62), NONE).query_scale == (64 / 4) ** -0.5
    assert read_spec(metadata(layers=48), NONE).query_scale == 16**-0.5


def test_a_vocabulary_size_in_the_file_counts() -> None:
    assert read_spec(metadata(vocab_size=999), NONE).vocabulary == 999
