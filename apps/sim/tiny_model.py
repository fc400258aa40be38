"""A Llama of a few thousand random weights in a folder, for homes that are only simulated.

It stands for nothing but itself: greedy texts of it differ from prompt to prompt, and that is all.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LAYERS = 4
VOCABULARY = 64
CONTEXT = 256
HIDDEN = 16
FFN = 32
HEADS, KV_HEADS = 2, 1

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write_tiny_model(folder: Path, seed: int = 1) -> Path:
    """config.json and model.safetensors in `folder`, which is made; returns it."""
    rng = np.random.default_rng(seed)
    header: dict[str, object] = {}
    body = bytearray()
    for name, shape in _shapes():
        if len(shape) == 1:
            values = 1 + 0.3 * rng.standard_normal(shape)
        elif "embed" in name:
            values = 0.5 * rng.standard_normal(shape)
        else:  # larger than trained ones, so that texts do not repeat
            values = 2.0 * rng.standard_normal(shape) / shape[-1] ** 0.5
        data = values.astype("<f4").tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        body += data
    head = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + body)
    return folder


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    kv = HIDDEN // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        yield layer + "input_layernorm.weight", (HIDDEN,)
        yield layer + "post_attention_layernorm.weight", (HIDDEN,)
        yield layer + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "self_attn.k_proj.weight", (kv, HIDDEN)
        yield layer + "self_attn.v_proj.weight", (kv, HIDDEN)
        yield layer + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "mlp.gate_proj.weight", (FFN, HIDDEN)
        yield layer + "mlp.up_proj.weight", (FFN, HIDDEN)
        yield layer + "mlp.down_proj.weight", (HIDDEN, FFN)
