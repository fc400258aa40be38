"""A transformers model as the GGUF file that llama.cpp's converter would make of it, in fp32.

Names come from llama.cpp's own tables (the `gguf` package), not from ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.runtime.gguf_writer import Stored, f32, write_gguf

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
}


def write_as_gguf(model: Any, path: Path, extra: Mapping[str, Any] | None = None) -> Path:
    """`extra` are further metadata, such as a tokenizer's."""
    architecture = model.config.model_type.removesuffix("_text")
    metadata = {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in _keys(model.config).items()},
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(model.config.vocab_size)],
        **(extra or {}),
    }
    return write_gguf(path, metadata, dict(_tensors(model, architecture)))


def _keys(config: Any) -> dict[str, Any]:
    if config.model_type == "gpt2":
        return {
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "feed_forward_length": 4 * config.n_embd,
            "block_count": config.n_layer,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        keys["attention.sliding_window"] = config.sliding_window
        keys["attention.sliding_window_pattern"] = 2
        rope = rope["full_attention"]
    keys["rope.freq_base"] = float(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return keys


def _tensors(model: Any, architecture: str) -> Iterator[tuple[str, Stored]]:
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            values = _paired(values, model.model.layers[0].self_attn.head_dim)
        if architecture == "gpt2" and any(f".{one}.weight" in name for one in _CONV1D):
            values = values.T
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        yield stored, f32(np.ascontiguousarray(values))
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        yield "rope_freqs.weight", f32(_divisors(config))


_CONV1D = ("c_attn", "c_proj", "c_fc")


def _paired(values: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows i and i + D/2 of each head side by side, since llama.cpp turns neighbours."""
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _divisors(config: Any) -> np.ndarray:
    """As the converter computes them: from wavelengths, pair by pair."""
    rope, divisors = config.rope_parameters, []
    longest = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    shortest = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    for pair in range(config.head_dim // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * pair / config.head_dim)
        if wave < shortest:
            divisors.append(1.0)
        elif wave > longest:
            divisors.append(rope["factor"])
        else:
            turns = rope["original_max_position_embeddings"] / wave
            smooth = (turns - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)
