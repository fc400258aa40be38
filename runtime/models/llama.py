"""Llama 2 and 3, and the many that are built as they are (TinyLlama, SmolLM2, Mistral's GGUF)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from runtime.models.family import Form
from runtime.models.llama_like import LLAMA_CPP, TRANSFORMERS, config_spec, gguf_spec
from runtime.models.metadata import Metadata
from runtime.models.spec import DecoderSpec, Storage

ARCHITECTURE: Final = "llama"


def read_gguf(metadata: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    return gguf_spec(Metadata(metadata, "llama."), ARCHITECTURE, tensors)


def read_config(config: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata(config)
    biased = read.flag("attention_bias", False)
    return replace(
        config_spec(read, ARCHITECTURE),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=read.flag("mlp_bias", False),
    )


GGUF: Final = Form(read_gguf, replace(LLAMA_CPP, query_key=Storage.PAIRED))
FOLDER: Final = Form(read_config, TRANSFORMERS)
