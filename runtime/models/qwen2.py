"""Qwen 2 and 2.5: Llama with biases on queries, keys and values; late layers may slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from runtime.models.family import Form
from runtime.models.llama_like import LLAMA_CPP, TRANSFORMERS, config_spec, gguf_spec
from runtime.models.metadata import Metadata
from runtime.models.spec import DecoderSpec, LayerSpec

ARCHITECTURE: Final = "qwen2"
KINDS: Final = ("full_attention", "sliding_attention")


def read_gguf(metadata: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    return gguf_spec(Metadata(metadata, "qwen2."), ARCHITECTURE, tensors)


def read_config(config: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata(config)
    return replace(with_windows(config_spec(read, ARCHITECTURE), read), qkv_bias=True)


def with_windows(spec: DecoderSpec, config: Metadata) -> DecoderSpec:
    """The spec with the sliding layers that the config asks for; there are none by default."""
    if not config.flag("use_sliding_window", False):
        return spec
    count, window = len(spec.layers), config.count("sliding_window", 4096)
    if config.has("layer_types"):
        slides = [kind == KINDS[1] for kind in config.kinds("layer_types", count, KINDS)]
    else:
        first = config.whole("max_window_layers", 28)
        slides = [index >= first for index in range(count)]
    layers = zip(spec.layers, slides, strict=True)
    return replace(
        spec, layers=tuple(LayerSpec(window if s else None, layer.rope) for layer, s in layers)
    )


GGUF: Final = Form(read_gguf, LLAMA_CPP)
FOLDER: Final = Form(read_config, TRANSFORMERS)
