"""What the descendants of Llama share: most keys of their metadata, and the names of their tensors.

RMS norms, rotary positions, grouped queries, a gated MLP: a family changes the few fields of the
spec in which it differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models.metadata import MOST_HEADS, MOST_LAYERS, Metadata
from runtime.models.names import NameMap
from runtime.models.ropes import config_rope, gguf_rope
from runtime.models.spec import Activation, DecoderSpec, LayerSpec

LLAMA_CPP: Final = NameMap(
    layer="blk.{}.",
    embedding="token_embd",
    final_norm="output_norm",
    output="output",
    attention_norm="attn_norm",
    query="attn_q",
    key="attn_k",
    value="attn_v",
    query_norm="attn_q_norm",
    key_norm="attn_k_norm",
    attention_output="attn_output",
    attention_post_norm="post_attention_norm",
    mlp_norm="ffn_norm",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
    mlp_post_norm="post_ffw_norm",
    rope_divisors="rope_freqs",
)
TRANSFORMERS: Final = NameMap(
    layer="layers.{}.",
    embedding="embed_tokens",
    final_norm="norm",
    output="lm_head",
    attention_norm="input_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    attention_output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    prefixes=("model.", ""),
    ignored=r"\.rotary_emb\.inv_freq$",  # older files keep what follows from the base
)
ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}


def gguf_spec(read: Metadata, architecture: str, tensors: frozenset[str]) -> DecoderSpec:
    """The spec as Llama's is; raises BadModelFile or UnsupportedModel."""
    read.only("expert_count", 0)
    hidden, heads = (
        read.count("embedding_length"),
        read.count("attention.head_count", most=MOST_HEADS),
    )
    kv_heads = read.count("attention.head_count_kv", heads, most=MOST_HEADS)
    head_dim = read.count("attention.key_length", max(1, hidden // heads), most=MOST_HEADS)
    if read.count("attention.value_length", head_dim) != head_dim:
        raise BadModelFile(
            f"{architecture} has heads of the same size for keys and values; the file says "
            f"{head_dim} and {read.count('attention.value_length')}"
        )
    check_heads(architecture, heads, kv_heads, head_dim)
    read.only("rope.dimension_count", head_dim)
    layer = LayerSpec(None, gguf_rope(read, 10_000.0))
    return DecoderSpec(
        architecture=architecture,
        hidden_size=hidden,
        ffn_size=read.count("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=read.vocabulary(),
        context=read.count("context_length"),
        norm_eps=read.positive("attention.layer_norm_rms_epsilon"),
        query_scale=head_dim**-0.5,
        activation=Activation.SILU,
        layers=(layer,) * read.count("block_count", most=MOST_LAYERS),
        tied_head="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
    )


def config_spec(config: Metadata, architecture: str, *, tied_head: bool = False) -> DecoderSpec:
    """The spec as Llama's is, without biases; `tied_head` is what an absent key means.

    Raises BadModelFile or UnsupportedModel.
    """
    hidden, heads = (
        config.count("hidden_size"),
        config.count("num_attention_heads", most=MOST_HEADS),
    )
    kv_heads = config.count("num_key_value_heads", heads, most=MOST_HEADS)
    head_dim = config.count("head_dim", max(1, hidden // heads), most=MOST_HEADS)
    check_heads(architecture, heads, kv_heads, head_dim)
    context = config.count("max_position_embeddings")
    layer = LayerSpec(None, config_rope(config, 10_000.0, context))
    return DecoderSpec(
        architecture=architecture,
        hidden_size=hidden,
        ffn_size=config.count("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=config.count("vocab_size"),
        context=context,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        query_scale=head_dim**-0.5,
        activation=activation(config, "hidden_act", "silu"),
        layers=(layer,) * config.count("num_hidden_layers", most=MOST_LAYERS),
        tied_head=config.flag("tie_word_embeddings", tied_head),
    )


def check_heads(architecture: str, heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises BadModelFile for numbers that no model of ours can have."""
    if heads % kv_heads or head_dim % 2:
        raise BadModelFile(
            f"{architecture} has query heads a multiple of KV heads and an even head size; "
            f"the file says {heads}, {kv_heads} and {head_dim}"
        )


def activation(config: Metadata, key: str, default: str) -> Activation:
    """By the names that config.json uses; raises UnsupportedModel for one we do not have."""
    name = config.text(key, default)
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"{key} is {name!r:.60}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
