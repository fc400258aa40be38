"""A Gemma 3 of some thousand random weights, the same for the same seed, written in milliseconds.

It has everything the real one has (sliding and full layers, quantised matrices, a tokenizer with
control, user-defined and byte tokens), so whatever runs on it runs on the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.gguf_writer import Stored, f32, q8_0, write_gguf

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
USER_DEFINED_TEXTS = ["\n\n", "\n\n\n", "  ", "   ", "<b>", "</b>"]
WORDS = ["▁t", "he", "▁a", "in", "▁the", "▁in", "er", "▁s", "an", "nd", "▁and", "▁w", "on"]
LETTERS = [*"▁abcdefghijklmnopqrstuvwxyz.,!?'<>/\n0123456789"]


def tiny_tokens() -> tuple[list[str], list[int], list[float]]:
    """Texts, types and scores of about 330 tokens."""
    kinds = [
        (CONTROLS, CONTROL),
        (USER_DEFINED_TEXTS, USER_DEFINED),
        ([f"<0x{byte:02X}>" for byte in range(256)], BYTE),
        (WORDS, NORMAL),
        (LETTERS, NORMAL),
    ]
    texts = [text for group, _ in kinds for text in group]
    types = [kind for group, kind in kinds for _ in group]
    return texts, types, [-float(index) for index in range(len(texts))]


def tokenizer_metadata() -> dict[str, Any]:
    texts, types, scores = tiny_tokens()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def tiny_metadata(
    layers: int,
    hidden: int,
    heads: int,
    head_dim: int,
    ffn: int,
    context: int,
    window: int,
    name: str = "Tiny Gemma",
) -> dict[str, Any]:
    return {
        "general.architecture": "gemma3",
        "general.name": name,
        "gemma3.context_length": context,
        "gemma3.embedding_length": hidden,
        "gemma3.block_count": layers,
        "gemma3.feed_forward_length": ffn,
        "gemma3.attention.head_count": heads,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": head_dim,
        "gemma3.attention.value_length": head_dim,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": window,
        "gemma3.attention.sliding_window_pattern": 2,  # so that few layers have both kinds
        "gemma3.rope.freq_base": 1_000_000.0,
        **tokenizer_metadata(),
    }


def tiny_tensors(
    layers: int, hidden: int, heads: int, head_dim: int, ffn: int, seed: int
) -> dict[str, Stored]:
    random = np.random.default_rng(seed)
    vocabulary = len(tiny_tokens()[0])

    def matrix(rows: int, columns: int) -> Stored:
        return q8_0(random.standard_normal((rows, columns)) / np.sqrt(columns))

    def norm(size: int, scale: float = 1.0) -> Stored:
        return f32(scale * random.uniform(0.5, 1.5, size))

    # Small, or the residual stream would carry each token to the tied head, which would repeat it.
    embedding = 0.02 * random.standard_normal((vocabulary, hidden))
    embedding[: len(CONTROLS)] *= 0.1  # seldom chosen: an end of sequence would end tests early
    tensors = {"token_embd.weight": q8_0(embedding), "output_norm.weight": norm(hidden, 10.0)}
    for index in range(layers):
        layer = {
            "attn_norm": norm(hidden),
            "attn_q": matrix(heads * head_dim, hidden),
            "attn_k": matrix(head_dim, hidden),
            "attn_v": matrix(head_dim, hidden),
            "attn_q_norm": norm(head_dim),
            "attn_k_norm": norm(head_dim),
            "attn_output": matrix(hidden, heads * head_dim),
            "post_attention_norm": norm(hidden),
            "ffn_norm": norm(hidden),
            "ffn_gate": matrix(ffn, hidden),
            "ffn_up": matrix(ffn, hidden),
            "ffn_down": matrix(hidden, ffn),
            "post_ffw_norm": norm(hidden),
        }
        tensors |= {f"blk.{index}.{name}.weight": tensor for name, tensor in layer.items()}
    return tensors


def write_tiny_gemma(
    path: Path,
    *,
    layers: int = 4,
    seed: int = 0,
    hidden: int = 64,
    heads: int = 4,
    head_dim: int = 16,
    ffn: int = 128,
    context: int = 256,
    window: int = 8,
    name: str = "Tiny Gemma",
) -> Path:
    """Writes the model to `path` and returns it. Odd layers are full, even ones slide."""
    metadata = tiny_metadata(layers, hidden, heads, head_dim, ffn, context, window, name)
    return write_gguf(path, metadata, tiny_tensors(layers, hidden, heads, head_dim, ffn, seed))
