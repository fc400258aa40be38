"""OPT: as GPT-2 with ReLU and matrices of their own for q, k and v; positions begin at row 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadModelFile
from runtime.models.family import Form
from runtime.models.llama_like import activation
from runtime.models.metadata import MOST_HEADS, MOST_LAYERS, Metadata
from runtime.models.names import NameMap
from runtime.models.spec import DecoderSpec, LayerSpec, NormKind

ARCHITECTURE: Final = "opt"
FIRST_POSITION: Final = 2  # the table's first rows once belonged to padding
NORM_EPS: Final = 1e-5  # config.json does not say


def read_config(config: Mapping[str, Any], tensors: frozenset[str]) -> DecoderSpec:
    """The 350M model norms after each step and projects its embedding: refused."""
    read = Metadata(config)
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads", most=MOST_HEADS)
    read.only("do_layer_norm_before", True)
    read.only("word_embed_proj_dim", hidden)
    read.only("_remove_final_layer_norm", False)
    read.only("layer_norm_elementwise_affine", True)
    if hidden % heads:
        raise BadModelFile(f"{ARCHITECTURE} has heads of one size; {hidden} / {heads} is not whole")
    biased = read.flag("enable_bias", True)
    return DecoderSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        ffn_size=read.count("ffn_dim"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=read.count("vocab_size"),
        context=read.count("max_position_embeddings"),
        norm_eps=NORM_EPS,
        query_scale=(hidden // heads) ** -0.5,
        activation=activation(read, "activation_function", "relu"),
        layers=(LayerSpec(None, None),) * read.count("num_hidden_layers", most=MOST_LAYERS),
        tied_head=read.flag("tie_word_embeddings", True),
        norm=NormKind.LAYER,
        gated=False,
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        first_position=FIRST_POSITION,
    )


FOLDER: Final = Form(
    read_config,
    NameMap(
        layer="layers.{}.",
        embedding="embed_tokens",
        positions="embed_positions",
        final_norm="final_layer_norm",
        output="lm_head",
        attention_norm="self_attn_layer_norm",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        attention_output="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        up="fc1",
        down="fc2",
        prefixes=("model.decoder.", "decoder.", ""),
    ),
)
