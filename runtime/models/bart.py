"""BART: norms after each step, learned positions that start at row 2, a bias on the logits."""

from __future__ import annotations

import math
from typing import Final

from runtime.models.encoder_config import nonlinearity, read_stack
from runtime.models.metadata import Metadata
from runtime.models.seq2seq_names import (
    AttentionNames,
    EndPlaces,
    LayerNames,
    Seq2SeqFamily,
    norm,
    table,
)
from runtime.models.seq2seq_spec import (
    ExitSpec,
    Output,
    Seq2SeqSpec,
    TokenEntrySpec,
)
from runtime.models.spec import NormKind, TensorPlace

ARCHITECTURE: Final = "bart"
WORDS: Final = "shared.weight"
HEAD: Final = "lm_head.weight"
LOGITS_BIAS: Final = "final_logits_bias"
NORM_EPS: Final = 1e-5  # not in its config
FIRST_POSITION: Final = 2  # rows 0 and 1 of the tables are never used


def read_spec(config: Metadata, tensors: frozenset[str]) -> Seq2SeqSpec:
    """Raises BadModelFile for missing or impossible values, UnsupportedModel for other kinds."""
    hidden, vocabulary = config.count("d_model"), config.count("vocab_size")
    context = config.count("max_position_embeddings", 1024)
    entry = TokenEntrySpec(
        context=context,
        scale=math.sqrt(hidden) if config.flag("scale_embedding", False) else 1.0,
        position_rows=context + FIRST_POSITION,
        position_offset=FIRST_POSITION,
        normed=True,
    )
    return Seq2SeqSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        vocabulary=vocabulary,
        encoder=read_stack(config, "encoder", hidden),
        decoder=read_stack(config, "decoder", hidden),
        norm=NormKind.LAYER,
        norm_eps=NORM_EPS,
        pre_norm=False,
        biased=True,
        key_biased=True,
        activation=nonlinearity(config.text("activation_function", "gelu")),
        gated=False,
        scaled=True,
        relative=None,
        source=entry,
        target=entry,
        exit=ExitSpec(Output.LANGUAGE, vocabulary, logits_bias=LOGITS_BIAS in tensors),
    )


def ends(spec: Seq2SeqSpec, tensors: frozenset[str]) -> EndPlaces:
    hidden, vocabulary = spec.hidden_size, spec.vocabulary
    head = TensorPlace(HEAD if HEAD in tensors else WORDS, (vocabulary, hidden), "output")
    bias = TensorPlace(LOGITS_BIAS, (1, vocabulary), "logits_bias.weight")
    return EndPlaces(
        words=WORDS,
        source=_entry(spec, "encoder"),
        target=_entry(spec, "decoder"),
        exit=(head, bias) if spec.exit.logits_bias else (head,),
    )


def _entry(spec: Seq2SeqSpec, stack: str) -> tuple[TensorPlace, ...]:
    rows = spec.context + FIRST_POSITION
    return (
        table(f"{stack}.embed_positions", "positions", rows, spec.hidden_size),
        *norm(spec, f"{stack}.layernorm_embedding", "norm"),
    )


def attention(name: str) -> AttentionNames:
    return AttentionNames(
        query=f"{name}.q_proj",
        key=f"{name}.k_proj",
        value=f"{name}.v_proj",
        output=f"{name}.out_proj",
        norm=f"{name}_layer_norm",
    )


def layers(stack: str) -> LayerNames:
    """Whisper's layers are called the same."""
    return LayerNames(
        prefix=f"{stack}.layers.{{}}.",
        attention=attention("self_attn"),
        cross=attention("encoder_attn") if stack == "decoder" else None,
        up=("fc1",),
        down="fc2",
        mlp_norm="final_layer_norm",
    )


FAMILY: Final = Seq2SeqFamily(
    architecture=ARCHITECTURE,
    read_spec=read_spec,
    layers=lambda spec: (layers("encoder"), layers("decoder")),
    ends=ends,
    prefix="model.",
    renamed={"encoder.embed_tokens.weight": WORDS, "decoder.embed_tokens.weight": WORDS},
    ignored=r"^(en|de)coder\.version$",
)
