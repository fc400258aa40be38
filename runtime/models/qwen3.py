"""Qwen 3: Llama with norms on each head's query and key, and a head size of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from runtime.models.family import Form
from runtime.models.llama_like import LLAMA_CPP, TRANSFORMERS, config_spec, gguf_spec
from runtime.models.metadata import Metadata
from runtime.models.qwen2 import with_windows
from runtime.models.spec import DecoderSpec

ARCHITECTURE: Final = "qwen3"
HEAD_DIM: Final = 128  # where config.json does not say


def read_gguf(metadata: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    return replace(gguf_spec(Metadata(metadata, "qwen3."), ARCHITECTURE, tensors), qk_norm=True)


def read_config(config: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata({"head_dim": HEAD_DIM, **config})
    biased = read.flag("attention_bias", False)
    spec = with_windows(config_spec(read, ARCHITECTURE), read)
    return replace(spec, qk_norm=True, qkv_bias=biased, output_bias=biased)


GGUF: Final = Form(read_gguf, LLAMA_CPP)
FOLDER: Final = Form(read_config, TRANSFORMERS)
