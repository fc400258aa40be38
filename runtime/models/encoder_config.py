"""A config.json of an encoder: what its families have in common, beside plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models.metadata import MOST_HEADS, MOST_LAYERS, Metadata
from runtime.models.seq2seq_spec import StackSpec
from runtime.models.spec import Activation

# What config.json calls the nonlinearities.
_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "relu": Activation.RELU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "silu": Activation.SILU,
    "tanh": Activation.TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_python": Activation.GELU,
    "swish": Activation.SILU,
}


def read_stack(config: Metadata, name: str, hidden: int) -> StackSpec:
    """The "encoder" or the "decoder", as BART and Whisper describe them. Raises BadModelFile."""
    heads = config.count(f"{name}_attention_heads", most=MOST_HEADS)
    return StackSpec(
        layers=config.count(f"{name}_layers", most=MOST_LAYERS),
        heads=heads,
        head_dim=head_dim(hidden, heads),
        ffn_size=config.count(f"{name}_ffn_dim"),
    )


def head_dim(hidden: int, heads: int) -> int:
    """Raises BadModelFile when the heads do not share the width evenly."""
    if hidden % heads:
        raise BadModelFile(f"config.json: {heads} heads do not divide a width of {hidden}")
    return hidden // heads


def nonlinearity(name: str) -> Activation:
    """Raises UnsupportedModel for one that we do not have."""
    known = _ACTIVATIONS.get(name)
    if known is None:
        raise UnsupportedModel(
            f"config.json asks for the nonlinearity {name!r:.60}; "
            f"known: {', '.join(sorted(_ACTIVATIONS))}"
        )
    return known
