"""The name map of an encoder family: which tensor of the checkpoint fills which parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from runtime.models.metadata import Metadata
from runtime.models.seq2seq_spec import Seq2SeqSpec
from runtime.models.spec import NormKind, TensorPlace

Places = tuple[TensorPlace, ...]
# How the first checkpoints called the parameters of a norm.
OLD_SUFFIXES: Final = ((".gamma", ".weight"), (".beta", ".bias"))


@dataclass(frozen=True, slots=True)
class AttentionNames:
    """Below a layer's prefix."""

    query: str
    key: str
    value: str
    output: str
    norm: str


@dataclass(frozen=True, slots=True)
class LayerNames:
    """One stack's layers. `prefix` has {} for the number of the layer in its stack."""

    prefix: str
    attention: AttentionNames
    up: tuple[str, ...]  # one matrix, or gate and up
    down: str
    mlp_norm: str
    cross: AttentionNames | None = None  # of a decoder
    relative: str | None = None  # the whole name: one table for all layers


@dataclass(frozen=True, slots=True)
class EndPlaces:
    """What stands before, between and behind the stacks."""

    words: str  # the embedding, read row by row
    source: Places
    middle: Places = ()  # the encoder's last norm
    target: Places = ()
    exit: Places = ()


@dataclass(frozen=True, slots=True)
class Seq2SeqFamily:
    """One architecture: how its config is read, and the names of its tensors."""

    architecture: str  # model_type in config.json
    read_spec: Callable[[Metadata, frozenset[str]], Seq2SeqSpec]  # config, tensor names
    layers: Callable[[Seq2SeqSpec], tuple[LayerNames, ...]]  # of the encoder, and of the decoder
    ends: Callable[[Seq2SeqSpec, frozenset[str]], EndPlaces]
    prefix: str = ""  # that checkpoints of the whole model carry and those of its core do not
    renamed: Mapping[str, str] = field(default_factory=dict)  # copies and older names, to ours
    ignored: str = r"(?!)"  # finds names that checkpoints may have and no model needs

    def known_as(self, name: str) -> str:
        """The name of a checkpoint's tensor in this map."""
        name = name.removeprefix(self.prefix)
        for old, new in OLD_SUFFIXES:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return self.renamed.get(name, name)

    def layer(self, spec: Seq2SeqSpec, index: int) -> Places:
        """The tensors of layer `index`, counted through both stacks."""
        decodes = spec.is_decoder(index)
        number = index - spec.encoder.layers if decodes else index
        return _layer(spec, index, number, self.layers(spec)[decodes])


def dense(
    tensor: str, parameter: str, rows: int, columns: int, *, biased: bool = True, first_row: int = 0
) -> Places:
    """Rows of a Linear: `tensor`.weight and, where it has one, .bias."""
    weight = TensorPlace(f"{tensor}.weight", (rows, columns), parameter, first_row)
    bias = TensorPlace(f"{tensor}.bias", (rows,), f"{parameter}.bias", first_row)
    return (weight, bias) if biased else (weight,)


def table(tensor: str, parameter: str, rows: int, columns: int) -> TensorPlace:
    """A Table: `tensor`.weight as it is."""
    return TensorPlace(f"{tensor}.weight", (rows, columns), f"{parameter}.weight")


def norm(spec: Seq2SeqSpec, tensor: str, parameter: str) -> Places:
    """`parameter` is "" where the norm stands alone."""
    shape, at = (spec.hidden_size,), f"{parameter}." if parameter else ""
    weight = TensorPlace(f"{tensor}.weight", shape, f"{at}weight")
    if spec.norm is NormKind.RMS:
        return (weight,)
    return (weight, TensorPlace(f"{tensor}.bias", shape, f"{at}bias"))


def _layer(spec: Seq2SeqSpec, index: int, number: int, names: LayerNames) -> Places:
    stack, hidden, at = spec.stack(index), spec.hidden_size, names.prefix.format(number)
    inner, ffn = stack.inner_size, stack.ffn_size
    parts = [_self_attention(spec, index, at, names.attention)]
    if names.relative is not None and spec.relative is not None:
        shape = (spec.relative.buckets, stack.heads)
        parts.append((TensorPlace(names.relative, shape, "attention.bias.weight"),))
    if names.cross is not None:
        parts.append(_cross_attention(spec, inner, at, names.cross))
    for position, up in enumerate(names.up):
        first = position * ffn
        parts.append(dense(at + up, "mlp.up", ffn, hidden, biased=spec.biased, first_row=first))
    parts.append(dense(at + names.down, "mlp.down", hidden, ffn, biased=spec.biased))
    parts.append(norm(spec, at + names.mlp_norm, "mlp_norm"))
    return tuple(chain.from_iterable(parts))


def _self_attention(spec: Seq2SeqSpec, index: int, at: str, names: AttentionNames) -> Places:
    inner, hidden = spec.stack(index).inner_size, spec.hidden_size
    biases = (spec.biased, spec.biased and spec.key_biased, spec.biased)
    maps = [
        dense(at + name, "attention.qkv", inner, hidden, biased=biased, first_row=number * inner)
        for number, (name, biased) in enumerate(
            zip((names.query, names.key, names.value), biases, strict=True)
        )
    ]
    output = dense(at + names.output, "attention.output", hidden, inner, biased=spec.biased)
    return (*chain.from_iterable(maps), *output, *norm(spec, at + names.norm, "attention_norm"))


def _cross_attention(spec: Seq2SeqSpec, inner: int, at: str, names: AttentionNames) -> Places:
    hidden, biased = spec.hidden_size, spec.biased
    key_biased = biased and spec.key_biased
    return (
        *dense(at + names.query, "cross.query", inner, hidden, biased=biased),
        *dense(at + names.key, "cross.key_value", inner, hidden, biased=key_biased),
        *dense(at + names.value, "cross.key_value", inner, hidden, biased=biased, first_row=inner),
        *dense(at + names.output, "cross.output", hidden, inner, biased=biased),
        *norm(spec, at + names.norm, "cross_norm"),
    )
