"""Small random models of each family, written by `transformers` itself: the same for the same seed.

The weights are larger than a fresh model's, so that logits differ clearly and text does not repeat.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 160
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 4.0}
FULL, SLIDING = "full_attention", "sliding_attention"
GEMMA3 = LLAMA | {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "rope_parameters": {
        FULL: {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 256, "n_embd": 64, "n_layer": 4, "n_head": 4}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
# What is checked: the family's plain form, and each way in which its files differ.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama 2": ("Llama", LLAMA),
    "llama 3": ("Llama", LLAMA | {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama with all biases": (
        "Llama",
        LLAMA
        | {"rope_parameters": LINEAR_ROPE, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
    ),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2 with late sliding layers": (
        "Qwen2",
        LLAMA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3Text", GEMMA3),
    "gemma3 with a scale of its own": ("Gemma3Text", GEMMA3 | {"query_pre_attn_scalar": 24}),
    "gpt2": ("GPT2", GPT2),
    "opt": ("OPT", OPT),
    "opt without biases": ("OPT", OPT | {"enable_bias": False, "activation_function": "gelu"}),
}
CAUSAL = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def make_model(variant: str) -> Any:
    """The reference: transformers' own model, in fp32."""
    transformers = importlib.import_module("transformers")
    kind, settings = VARIANTS[variant]
    config = getattr(transformers, f"{kind}Config")(
        **settings, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager"
    )
    model = getattr(transformers, CAUSAL.get(kind, f"{kind}ForCausalLM"))(config)
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, parameter.shape, generator))
    return model.eval()


def write_folder(variant: str, folder: Path, **options: Any) -> Path:
    """Saves the model as its owner would, and returns the folder."""
    make_model(variant).save_pretrained(folder, **options)
    return folder


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    random = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.1 * random
    if len(shape) == 1:  # a norm's factors; Gemma's are less 1, which is as good
        return 1 + 0.3 * random
    if ".wpe" in name or "positions" in name:
        return 0.6 * random
    if "emb" in name or ".wte" in name:
        # Small where the head is tied: the residual stream would carry each token to it again.
        return 0.1 * random
    return 1.5 * random / shape[-1] ** 0.5
