"""Whisper: hears a spectrogram through two convolutions; norms in front; keys without a bias."""

from __future__ import annotations

import math
from typing import Final

from runtime.models.bart import layers
from runtime.models.encoder_config import nonlinearity, read_stack
from runtime.models.metadata import Metadata
from runtime.models.seq2seq_names import EndPlaces, Seq2SeqFamily, norm
from runtime.models.seq2seq_spec import (
    ExitSpec,
    MelEntrySpec,
    Output,
    Seq2SeqSpec,
    TokenEntrySpec,
)
from runtime.models.spec import NormKind, TensorPlace

ARCHITECTURE: Final = "whisper"
WORDS: Final = "decoder.embed_tokens.weight"
HEAD: Final = "proj_out.weight"
NORM_EPS: Final = 1e-5  # not in its config
CONTEXT: Final = 448  # target tokens
SOURCE_CONTEXT: Final = 1500  # hidden states of 20 ms each


def read_spec(config: Metadata, tensors: frozenset[str]) -> Seq2SeqSpec:
    """Raises BadModelFile for missing or impossible values, UnsupportedModel for other kinds."""
    hidden, vocabulary = config.count("d_model"), config.count("vocab_size")
    context = config.count("max_target_positions", CONTEXT)
    return Seq2SeqSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        vocabulary=vocabulary,
        encoder=read_stack(config, "encoder", hidden),
        decoder=read_stack(config, "decoder", hidden),
        norm=NormKind.LAYER,
        norm_eps=NORM_EPS,
        pre_norm=True,
        biased=True,
        key_biased=False,
        activation=nonlinearity(config.text("activation_function", "gelu")),
        gated=False,
        scaled=True,
        relative=None,
        source=MelEntrySpec(
            mels=config.count("num_mel_bins", 80, most=1024),
            context=config.count("max_source_positions", SOURCE_CONTEXT),
        ),
        target=TokenEntrySpec(
            context=context,
            scale=math.sqrt(hidden) if config.flag("scale_embedding", False) else 1.0,
            position_rows=context,
        ),
        exit=ExitSpec(Output.LANGUAGE, vocabulary, normed=True),
    )


def ends(spec: Seq2SeqSpec, tensors: frozenset[str]) -> EndPlaces:
    hidden, source = spec.hidden_size, spec.source
    assert isinstance(source, MelEntrySpec), "Whisper hears"
    head = HEAD if HEAD in tensors else WORDS
    return EndPlaces(
        words=WORDS,
        source=(
            TensorPlace("encoder.conv1.weight", (hidden, source.mels, 3), "first.weight"),
            TensorPlace("encoder.conv1.bias", (hidden,), "first.bias"),
            TensorPlace("encoder.conv2.weight", (hidden, hidden, 3), "second.weight"),
            TensorPlace("encoder.conv2.bias", (hidden,), "second.bias"),
            TensorPlace(
                "encoder.embed_positions.weight", (source.context, hidden), "positions.weight"
            ),
        ),
        middle=norm(spec, "encoder.layer_norm", ""),
        target=(
            TensorPlace(
                "decoder.embed_positions.weight", (spec.context, hidden), "positions.weight"
            ),
        ),
        exit=(
            *norm(spec, "decoder.layer_norm", "norm"),
            TensorPlace(head, (spec.vocabulary, hidden), "output"),
        ),
    )


FAMILY: Final = Seq2SeqFamily(
    architecture=ARCHITECTURE,
    read_spec=read_spec,
    layers=lambda spec: (layers("encoder"), layers("decoder")),
    ends=ends,
    prefix="model.",
)
