"""T5, versions 1.0 (ReLU, tied head) and 1.1 (gated GELU, a head of its own), and Flan-T5."""

from __future__ import annotations

from typing import Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models.encoder_config import nonlinearity
from runtime.models.metadata import MOST_HEADS, MOST_LAYERS, Metadata
from runtime.models.seq2seq_names import (
    AttentionNames,
    EndPlaces,
    LayerNames,
    Seq2SeqFamily,
    norm,
)
from runtime.models.seq2seq_spec import (
    ExitSpec,
    Output,
    RelativePositions,
    Seq2SeqSpec,
    StackSpec,
    TokenEntrySpec,
)
from runtime.models.spec import Activation, NormKind, TensorPlace

ARCHITECTURE: Final = "t5"
WORDS: Final = "shared.weight"
HEAD: Final = "lm_head.weight"
# Relative positions know no end. Ours is where the bias of 12 heads takes 200 MB.
CONTEXT: Final = 2048


def read_spec(config: Metadata, tensors: frozenset[str]) -> Seq2SeqSpec:
    """Raises BadModelFile for missing or impossible values, UnsupportedModel for other kinds."""
    hidden, vocabulary = config.count("d_model"), config.count("vocab_size")
    encoder = StackSpec(
        layers=config.count("num_layers", most=MOST_LAYERS),
        heads=config.count("num_heads", most=MOST_HEADS),
        head_dim=config.count("d_kv", most=MOST_HEADS),
        ffn_size=config.count("d_ff"),
    )
    decoder = StackSpec(
        layers=config.count("num_decoder_layers", encoder.layers, most=MOST_LAYERS),
        heads=encoder.heads,
        head_dim=encoder.head_dim,
        ffn_size=encoder.ffn_size,
    )
    activation, gated = _feed_forward(config.text("feed_forward_proj", "relu"))
    return Seq2SeqSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        vocabulary=vocabulary,
        encoder=encoder,
        decoder=decoder,
        norm=NormKind.RMS,
        norm_eps=config.positive("layer_norm_epsilon", 1e-6),
        pre_norm=True,
        biased=False,
        key_biased=False,
        activation=activation,
        gated=gated,
        scaled=False,
        relative=_relative(config),
        source=TokenEntrySpec(CONTEXT),
        target=TokenEntrySpec(CONTEXT),
        exit=ExitSpec(Output.LANGUAGE, vocabulary, normed=True, scale=_scale(config, hidden)),
    )


def ends(spec: Seq2SeqSpec, tensors: frozenset[str]) -> EndPlaces:
    head = HEAD if HEAD in tensors else WORDS
    return EndPlaces(
        words=WORDS,
        source=(),
        middle=norm(spec, "encoder.final_layer_norm", ""),
        exit=(
            *norm(spec, "decoder.final_layer_norm", "norm"),
            TensorPlace(head, (spec.vocabulary, spec.hidden_size), "output"),
        ),
    )


def _relative(config: Metadata) -> RelativePositions:
    buckets = config.count("relative_attention_num_buckets", 32, most=4096)
    distance = config.count("relative_attention_max_distance", 128)
    if buckets < 4 or distance <= buckets // 2:
        raise BadModelFile(
            "config.json: relative positions need 4 buckets or more and a largest distance above "
            f"half of them; it says {buckets} and {distance}"
        )
    return RelativePositions(buckets, distance)


def _feed_forward(kind: str) -> tuple[Activation, bool]:
    """The nonlinearity, and whether there is a gate. "gated-gelu" means the one by tanh."""
    gate, _, name = kind.rpartition("-")
    if gate not in ("", "gated"):
        raise UnsupportedModel(f"config.json: feed_forward_proj {kind!r:.60} is not known")
    if gate and name == "gelu":
        return Activation.GELU_TANH, True
    return nonlinearity(name), bool(gate)


def _scale(config: Metadata, hidden: int) -> float:
    """A tied head's input is scaled down; newer configs say so, older ones only that it is tied."""
    scaled = config.flag("scale_decoder_outputs", config.flag("tie_word_embeddings", True))
    return hidden**-0.5 if scaled else 1.0


def _attention(part: str, name: str) -> AttentionNames:
    at = f"layer.{part}."
    return AttentionNames(
        query=f"{at}{name}.q",
        key=f"{at}{name}.k",
        value=f"{at}{name}.v",
        output=f"{at}{name}.o",
        norm=f"{at}layer_norm",
    )


def _layers(stack: str, *, gated: bool) -> LayerNames:
    decodes = stack == "decoder"
    mlp = f"layer.{1 + decodes}."
    up = ("wi_0", "wi_1") if gated else ("wi",)
    return LayerNames(
        prefix=f"{stack}.block.{{}}.",
        attention=_attention("0", "SelfAttention"),
        cross=_attention("1", "EncDecAttention") if decodes else None,
        up=tuple(f"{mlp}DenseReluDense.{name}" for name in up),
        down=f"{mlp}DenseReluDense.wo",
        mlp_norm=f"{mlp}layer_norm",
        # Only the first layer of a stack has the table, and all layers use it.
        relative=f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    )


FAMILY: Final = Seq2SeqFamily(
    architecture=ARCHITECTURE,
    read_spec=read_spec,
    layers=lambda spec: (
        _layers("encoder", gated=spec.gated),
        _layers("decoder", gated=spec.gated),
    ),
    ends=ends,
    renamed={"encoder.embed_tokens.weight": WORDS, "decoder.embed_tokens.weight": WORDS},
    # Early checkpoints hold a table for cross-attention that was never used.
    ignored=r"EncDecAttention\.relative_attention_bias\.",
)
