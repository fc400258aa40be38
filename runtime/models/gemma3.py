"""Gemma 3 (text): five sliding layers, then a full one; norms around everything; a tied head.

Norm weights in a GGUF already hold the whole factor (transformers stores them less 1), and the
base of rope on sliding layers is not in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models.metadata import Metadata
from runtime.models.spec import (
    Activation,
    DecoderSpec,
    Family,
    LayerSpec,
    RopeSpec,
    TensorPlace,
)

ARCHITECTURE: Final = "gemma3"
FULL_EVERY: Final = 6  # layers 5, 11, 17 ..., where the file does not say otherwise
SLIDING_ROPE_BASE: Final = 10_000.0
FULL_ROPE_BASE: Final = 1_000_000.0
LAYERS_OF_27B: Final = 62  # the one size whose query scale is not 1 / sqrt(head_dim)


def read_spec(metadata: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    """Raises BadModelFile for missing or impossible values, UnsupportedModel for other rope."""
    read = Metadata(metadata, ARCHITECTURE)
    layers = read.count("block_count", most=1024)
    hidden, heads = read.count("embedding_length"), read.count("attention.head_count", most=4096)
    kv_heads = read.count("attention.head_count_kv", most=4096)
    head_dim = read.count("attention.key_length", most=4096)
    if heads % kv_heads or head_dim % 2 or read.count("attention.value_length") != head_dim:
        raise BadModelFile(
            f"{ARCHITECTURE} has query heads a multiple of KV heads and an even head size, the "
            f"same for keys and values; the file says {heads}, {kv_heads} and {head_dim}"
        )
    if read.number("attn_logit_softcapping", 0.0):
        raise UnsupportedModel(f"{ARCHITECTURE} with capped attention logits is not known here")
    query_scale = math.sqrt(heads / hidden) if layers == LAYERS_OF_27B else head_dim**-0.5
    return DecoderSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        ffn_size=read.count("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=read.vocabulary(),
        context=read.count("context_length"),
        norm_eps=read.positive("attention.layer_norm_rms_epsilon"),
        query_scale=query_scale,
        activation=Activation.GELU_TANH,
        embedding_scale=math.sqrt(hidden),
        qk_norm=True,
        post_norm=True,
        tied_head="output.weight" not in tensors,
        logit_softcap=read.number("final_logit_softcapping", 0.0) or None,
        layers=_layers(read, layers),
    )


def layer_tensors(spec: DecoderSpec, index: int) -> tuple[TensorPlace, ...]:
    """The tensors of layer `index`, and the rows of a Block's parameters that each fills."""
    hidden, ffn, head = spec.hidden_size, spec.ffn_size, (spec.head_dim,)
    q, kv = spec.query_size, spec.kv_size
    places = (
        TensorPlace("attn_norm", (hidden,), "attention_norm.weight"),
        TensorPlace("attn_q", (q, hidden), "attention.qkv"),
        TensorPlace("attn_k", (kv, hidden), "attention.qkv", first_row=q),
        TensorPlace("attn_v", (kv, hidden), "attention.qkv", first_row=q + kv),
        TensorPlace("attn_q_norm", head, "attention.query_norm.weight"),
        TensorPlace("attn_k_norm", head, "attention.key_norm.weight"),
        TensorPlace("attn_output", (hidden, q), "attention.output"),
        TensorPlace("post_attention_norm", (hidden,), "attention_post_norm.weight"),
        TensorPlace("ffn_norm", (hidden,), "mlp_norm.weight"),
        TensorPlace("ffn_gate", (ffn, hidden), "mlp.gate_up"),
        TensorPlace("ffn_up", (ffn, hidden), "mlp.gate_up", first_row=ffn),
        TensorPlace("ffn_down", (hidden, ffn), "mlp.down"),
        TensorPlace("post_ffw_norm", (hidden,), "mlp_post_norm.weight"),
    )
    return tuple(
        TensorPlace(f"blk.{index}.{p.tensor}.weight", p.shape, p.parameter, p.first_row)
        for p in places
    )


def _layers(read: Metadata, count: int) -> tuple[LayerSpec, ...]:
    full = LayerSpec(None, RopeSpec(read.positive("rope.freq_base", FULL_ROPE_BASE), _factor(read)))
    # Scaling stretches the full layers only: a window has nothing to stretch.
    base = read.positive("rope.freq_base_swa", SLIDING_ROPE_BASE)
    window = read.whole("attention.sliding_window", 0)
    sliding = LayerSpec(window, RopeSpec(base)) if window else full
    pattern = read.pattern("attention.sliding_window_pattern", FULL_EVERY, count)
    return tuple(sliding if slides else full for slides in pattern)


def _factor(read: Metadata) -> float:
    match read.text("rope.scaling.type", "none"):
        case "linear":
            return read.positive("rope.scaling.factor", 1.0)
        case "none":
            return 1.0
        case other:
            raise UnsupportedModel(
                f"{ARCHITECTURE} with rope scaling {other!r}; known are 'linear' and 'none'"
            )


FAMILY: Final = Family(ARCHITECTURE, read_spec, layer_tensors)
