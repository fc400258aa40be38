"""GPT-2: learned positions, norms with biases, a plain MLP; matrices stored as [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from mesh.errors import BadModelFile
from runtime.models.family import Form
from runtime.models.llama_like import LLAMA_CPP, activation
from runtime.models.metadata import MOST_HEADS, MOST_LAYERS, Metadata
from runtime.models.names import NameMap
from runtime.models.spec import Activation, DecoderSpec, LayerSpec, NormKind, Storage

ARCHITECTURE: Final = "gpt2"


def read_gguf(metadata: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata(metadata, "gpt2.")
    return _spec(
        hidden=read.count("embedding_length"),
        heads=read.count("attention.head_count", most=MOST_HEADS),
        layers=read.count("block_count", most=MOST_LAYERS),
        ffn=read.count("feed_forward_length"),
        vocabulary=read.vocabulary(),
        context=read.count("context_length"),
        eps=read.positive("attention.layer_norm_epsilon", 1e-5),
        nonlinearity=Activation.GELU_TANH,
        tied_head="output.weight" not in tensors,
    )


def read_config(config: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    read = Metadata(config)
    read.only("scale_attn_weights", True)
    read.only("scale_attn_by_inverse_layer_idx", False)
    read.only("add_cross_attention", False)
    hidden = read.count("n_embd")
    return _spec(
        hidden=hidden,
        heads=read.count("n_head", most=MOST_HEADS),
        layers=read.count("n_layer", most=MOST_LAYERS),
        ffn=read.count("n_inner", 4 * hidden),
        vocabulary=read.count("vocab_size"),
        context=read.count("n_positions"),
        eps=read.positive("layer_norm_epsilon", 1e-5),
        nonlinearity=activation(read, "activation_function", "gelu_new"),
        tied_head=read.flag("tie_word_embeddings", True),
    )


def _spec(
    *,
    hidden: int,
    heads: int,
    layers: int,
    ffn: int,
    vocabulary: int,
    context: int,
    eps: float,
    nonlinearity: Activation,
    tied_head: bool,
) -> DecoderSpec:
    if hidden % heads:
        raise BadModelFile(f"{ARCHITECTURE} has heads of one size; {hidden} / {heads} is not whole")
    return DecoderSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        ffn_size=ffn,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=vocabulary,
        context=context,
        norm_eps=eps,
        query_scale=(hidden // heads) ** -0.5,
        activation=nonlinearity,
        layers=(LayerSpec(None, None),) * layers,
        tied_head=tied_head,
        norm=NormKind.LAYER,
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        first_position=0,
    )


GGUF: Final = Form(read_gguf, replace(LLAMA_CPP, qkv="attn_qkv", positions="position_embd"))
FOLDER: Final = Form(
    read_config,
    NameMap(
        layer="h.{}.",
        embedding="wte",
        positions="wpe",
        final_norm="ln_f",
        output="lm_head",
        attention_norm="ln_1",
        qkv="attn.c_attn",
        attention_output="attn.c_proj",
        mlp_norm="ln_2",
        up="mlp.c_fc",
        down="mlp.c_proj",
        matrices=Storage.TRANSPOSED,
        prefixes=("transformer.", ""),
        ignored=r"\.attn\.(masked_)?bias$",  # the triangle that masks the future
    ),
)
