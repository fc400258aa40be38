"""Gemma 3 (text): five sliding layers, then a full one; norms around everything; a tied head.

Norm weights in a GGUF already hold the whole factor (transformers stores them less 1), and the
base of rope on sliding layers is not in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from mesh.errors import UnsupportedModel
from runtime.models.family import Form
from runtime.models.llama_like import LLAMA_CPP, TRANSFORMERS, activation, config_spec, gguf_spec
from runtime.models.metadata import Metadata
from runtime.models.qwen2 import KINDS
from runtime.models.ropes import gguf_rope, rope_of
from runtime.models.spec import Activation, DecoderSpec, LayerSpec, RopeSpec, Storage

ARCHITECTURE: Final = "gemma3"
FULL_EVERY: Final = 6  # layers 5, 11, 17 ..., where the file does not say otherwise
SLIDING_ROPE_BASE: Final = 10_000.0
FULL_ROPE_BASE: Final = 1_000_000.0
LAYERS_OF_27B: Final = 62  # the one size whose query scale is not 1 / sqrt(head_dim)


def read_gguf(metadata: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata(metadata, "gemma3.")
    if read.number("attn_logit_softcapping", 0.0):
        raise UnsupportedModel(f"{ARCHITECTURE} with capped attention logits is not known here")
    spec = _gemma(gguf_spec(read, ARCHITECTURE, tensors))
    count = len(spec.layers)
    scale = math.sqrt(spec.heads / spec.hidden_size)
    # Scaling stretches the full layers only: a window has nothing to stretch.
    full = gguf_rope(read, FULL_ROPE_BASE)
    sliding = RopeSpec(read.positive("rope.freq_base_swa", SLIDING_ROPE_BASE))
    window = read.whole("attention.sliding_window", 0)
    slides = read.pattern("attention.sliding_window_pattern", FULL_EVERY, count)
    return replace(
        spec,
        activation=Activation.GELU_TANH,
        query_scale=scale if count == LAYERS_OF_27B else spec.query_scale,
        logit_softcap=read.number("final_logit_softcapping", 0.0) or None,
        layers=_layers(slides, window, full, sliding),
    )


def read_config(config: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata({"head_dim": 256, **config})
    read.only("attn_logit_softcapping", 0.0)
    read.only("use_bidirectional_attention", False)
    # Rope is read below, for each kind of layer; Llama's way of writing it is another.
    own = {key: value for key, value in read.entries.items() if not key.startswith("rope")}
    spec = _gemma(config_spec(Metadata(own), ARCHITECTURE, tied_head=True))
    biased, count = read.flag("attention_bias", False), len(spec.layers)
    if read.has("layer_types"):
        slides = tuple(k == KINDS[1] for k in read.kinds("layer_types", count, KINDS))
    else:
        slides = read.pattern("sliding_window_pattern", FULL_EVERY, count)
    full, sliding = _config_ropes(read, spec.context)
    return replace(
        spec,
        activation=activation(read, "hidden_activation", "gelu_pytorch_tanh"),
        query_scale=read.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        logit_softcap=read.number("final_logit_softcapping", 0.0) or None,
        layers=_layers(slides, read.whole("sliding_window", 4096), full, sliding),
        qkv_bias=biased,
        output_bias=biased,
    )


def _gemma(spec: DecoderSpec) -> DecoderSpec:
    scale = math.sqrt(spec.hidden_size)
    return replace(spec, embedding_scale=scale, qk_norm=True, post_norm=True)


def _config_ropes(read: Metadata, context: int) -> tuple[RopeSpec, RopeSpec]:
    """Of full and of sliding layers, as files wrote it before and after transformers 5."""
    full_base = read.positive("rope_theta", FULL_ROPE_BASE)
    sliding_base = read.positive("rope_local_base_freq", SLIDING_ROPE_BASE)
    if not read.has("rope_parameters"):
        scaled = rope_of(read.table("rope_scaling"), full_base, context)
        return scaled, RopeSpec(sliding_base)
    parameters = read.table("rope_parameters")
    return (
        rope_of(parameters.table(KINDS[0]), full_base, context),
        rope_of(parameters.table(KINDS[1]), sliding_base, context),
    )


def _layers(
    slides: Iterable[bool], window: int, full: RopeSpec, sliding: RopeSpec
) -> tuple[LayerSpec, ...]:
    of_full = LayerSpec(None, full)
    of_sliding = LayerSpec(window, sliding) if window else of_full
    return tuple(of_sliding if each else of_full for each in slides)


GGUF: Final = Form(read_gguf, LLAMA_CPP)
FOLDER: Final = Form(
    read_config,
    replace(
        TRANSFORMERS,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        norms=Storage.LESS_ONE,
    ),
)
