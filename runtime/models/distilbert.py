"""DistilBERT: BERT with half the layers, no segments and no pooler."""

from __future__ import annotations

from typing import Final

from runtime.models.encoder_config import head_dim, nonlinearity
from runtime.models.encoder_exits import ExitNames, exit_places, read_exit
from runtime.models.metadata import MOST_HEADS, MOST_LAYERS, Metadata
from runtime.models.seq2seq_names import (
    AttentionNames,
    EndPlaces,
    LayerNames,
    Seq2SeqFamily,
    norm,
    table,
)
from runtime.models.seq2seq_spec import (
    Seq2SeqSpec,
    StackSpec,
    TokenEntrySpec,
)
from runtime.models.spec import Activation, NormKind

ARCHITECTURE: Final = "distilbert"
WORDS: Final = "embeddings.word_embeddings.weight"
NORM_EPS: Final = 1e-12  # not in its config
EXITS: Final = ExitNames(
    words=WORDS,
    masked_transform="vocab_transform",
    masked_norm="vocab_layer_norm",
    masked_weight="vocab_projector.weight",
    masked_bias="vocab_projector.bias",
    classes_transform="pre_classifier",
    classes_nonlinearity=Activation.RELU,
)
LAYERS: Final = LayerNames(
    prefix="transformer.layer.{}.",
    attention=AttentionNames(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        norm="sa_layer_norm",
    ),
    up=("ffn.lin1",),
    down="ffn.lin2",
    mlp_norm="output_layer_norm",
)


def read_spec(config: Metadata, tensors: frozenset[str]) -> Seq2SeqSpec:
    """Raises BadModelFile for missing or impossible values, UnsupportedModel for other kinds."""
    hidden, heads = config.count("dim"), config.count("n_heads", most=MOST_HEADS)
    context = config.count("max_position_embeddings", 512)
    return Seq2SeqSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        vocabulary=config.count("vocab_size"),
        encoder=StackSpec(
            layers=config.count("n_layers", most=MOST_LAYERS),
            heads=heads,
            head_dim=head_dim(hidden, heads),
            ffn_size=config.count("hidden_dim"),
        ),
        decoder=None,
        norm=NormKind.LAYER,
        norm_eps=NORM_EPS,
        pre_norm=False,
        biased=True,
        key_biased=True,
        activation=nonlinearity(config.text("activation", "gelu")),
        gated=False,
        scaled=True,
        relative=None,
        source=TokenEntrySpec(context=context, position_rows=context, normed=True),
        target=None,
        exit=read_exit(EXITS, config, tensors),
    )


def ends(spec: Seq2SeqSpec, tensors: frozenset[str]) -> EndPlaces:
    context, hidden = spec.source.context, spec.hidden_size
    return EndPlaces(
        words=WORDS,
        source=(
            table("embeddings.position_embeddings", "positions", context, hidden),
            *norm(spec, "embeddings.LayerNorm", "norm"),
        ),
        exit=exit_places(EXITS, spec, tensors),
    )


FAMILY: Final = Seq2SeqFamily(
    architecture=ARCHITECTURE,
    read_spec=read_spec,
    layers=lambda spec: (LAYERS,),
    ends=ends,
    prefix="distilbert.",
    ignored=r"^embeddings\.position_ids$",
)
