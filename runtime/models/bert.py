"""BERT, and sentence encoders made of it (MiniLM): norms after each step, learned positions."""

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

ARCHITECTURE: Final = "bert"
WORDS: Final = "embeddings.word_embeddings.weight"
EXITS: Final = ExitNames(
    words=WORDS,
    masked_transform="cls.predictions.transform.dense",
    masked_norm="cls.predictions.transform.LayerNorm",
    masked_weight="cls.predictions.decoder.weight",
    masked_bias="cls.predictions.bias",
    classes_transform="pooler.dense",
    classes_nonlinearity=Activation.TANH,
)
LAYERS: Final = LayerNames(
    prefix="encoder.layer.{}.",
    attention=AttentionNames(
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        norm="attention.output.LayerNorm",
    ),
    up=("intermediate.dense",),
    down="output.dense",
    mlp_norm="output.LayerNorm",
)


def read_spec(config: Metadata, tensors: frozenset[str]) -> Seq2SeqSpec:
    """Raises BadModelFile for missing or impossible values, UnsupportedModel for other kinds."""
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    hidden = config.count("hidden_size")
    heads = config.count("num_attention_heads", most=MOST_HEADS)
    context = config.count("max_position_embeddings", 512)
    return Seq2SeqSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        vocabulary=config.count("vocab_size"),
        encoder=StackSpec(
            layers=config.count("num_hidden_layers", most=MOST_LAYERS),
            heads=heads,
            head_dim=head_dim(hidden, heads),
            ffn_size=config.count("intermediate_size"),
        ),
        decoder=None,
        norm=NormKind.LAYER,
        norm_eps=config.positive("layer_norm_eps", 1e-12),
        pre_norm=False,
        biased=True,
        key_biased=True,
        activation=nonlinearity(config.text("hidden_act", "gelu")),
        gated=False,
        scaled=True,
        relative=None,
        source=TokenEntrySpec(
            context=context,
            position_rows=context,
            kinds=config.count("type_vocab_size", 2),
            normed=True,
        ),
        target=None,
        exit=read_exit(EXITS, config, tensors),
    )


def ends(spec: Seq2SeqSpec, tensors: frozenset[str]) -> EndPlaces:
    hidden = spec.hidden_size
    assert isinstance(spec.source, TokenEntrySpec), "BERT reads tokens"
    return EndPlaces(
        words=WORDS,
        source=(
            table("embeddings.position_embeddings", "positions", spec.source.context, hidden),
            table("embeddings.token_type_embeddings", "kinds", spec.source.kinds, hidden),
            *norm(spec, "embeddings.LayerNorm", "norm"),
        ),
        exit=exit_places(EXITS, spec, tensors),
    )


FAMILY: Final = Seq2SeqFamily(
    architecture=ARCHITECTURE,
    read_spec=read_spec,
    layers=lambda spec: (LAYERS,),
    ends=ends,
    prefix="bert.",
    renamed={"cls.predictions.decoder.bias": EXITS.masked_bias},
    # The pooler serves a classifier alone; the sentence embeddings of MiniLM pool otherwise.
    ignored=r"^(pooler\.|embeddings\.(position|token_type)_ids$|cls\.seq_relationship\.)",
)
