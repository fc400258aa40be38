"""The names of a decoder's tensors in a file: a map a format, and the places that follow from it.

Which tensors there are follows from the spec, so a map may name more than a model has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from runtime.models.spec import DecoderSpec, NormKind, Storage, TensorPlace

Places = tuple[TensorPlace, ...]


@dataclass(frozen=True, slots=True)
class NameMap:
    """Names without their ends `.weight` and `.bias`; those of a layer without its beginning.

    An empty name stands for what no model with this map has.
    """

    layer: str  # the beginning; {} stands for the layer's number
    embedding: str
    final_norm: str
    output: str  # in full: no prefix is put before it
    attention_norm: str
    attention_output: str
    mlp_norm: str
    up: str
    down: str
    gate: str = ""
    query: str = ""
    key: str = ""
    value: str = ""
    qkv: str = ""  # in place of the three
    query_norm: str = ""
    key_norm: str = ""
    attention_post_norm: str = ""
    mlp_post_norm: str = ""
    positions: str = ""
    rope_divisors: str = ""  # a tensor that some files have: what each frequency is divided by
    matrices: Storage = Storage.PLAIN  # of all layers
    query_key: Storage = Storage.PLAIN
    norms: Storage = Storage.PLAIN
    prefixes: tuple[str, ...] = ("",)  # one of these begins all names but that of the output
    ignored: str = r"(?!)"  # finds names that files may have and no model needs

    def found_in(self, tensors: Collection[str]) -> NameMap:
        """The map with the prefix that these tensors have; with the first, if they have none."""
        matching = (p for p in self.prefixes if f"{p}{self.embedding}.weight" in tensors)
        prefix = next(matching, self.prefixes[0])
        return replace(
            self,
            layer=prefix + self.layer,
            embedding=prefix + self.embedding,
            positions=prefix + self.positions,
            final_norm=prefix + self.final_norm,
            prefixes=("",),
        )


def layer_places(spec: DecoderSpec, names: NameMap, index: int) -> Places:
    """The tensors of layer `index`, and the rows of a Block's parameters that each fills."""
    return tuple(_Layer(spec, names, names.layer.format(index)).places())


def head_places(spec: DecoderSpec, names: NameMap) -> Places:
    """The tensors of the final norm and of the vocabulary head."""
    norm = _norm(names, names.final_norm, "norm", spec.hidden_size, spec.norm)
    output = names.embedding if spec.tied_head else names.output
    shape = (spec.vocabulary, spec.hidden_size)
    return (*norm, TensorPlace(f"{output}.weight", shape, "output"))


def entry_places(spec: DecoderSpec, names: NameMap) -> Places:
    """The tables that turn tokens, and where they stand, into hidden states."""
    shape = (spec.vocabulary, spec.hidden_size)
    tokens = TensorPlace(f"{names.embedding}.weight", shape, "embedding")
    if spec.first_position is None:
        return (tokens,)
    shape = (spec.first_position + spec.context, spec.hidden_size)
    return (tokens, TensorPlace(f"{names.positions}.weight", shape, "positions"))


@dataclass(frozen=True, slots=True)
class _Layer:
    spec: DecoderSpec
    names: NameMap
    prefix: str

    def places(self) -> Iterator[TensorPlace]:
        spec, names, hidden = self.spec, self.names, self.spec.hidden_size
        yield from self._norm(names.attention_norm, "attention_norm", hidden, spec.norm)
        yield from self._qkv()
        if spec.qk_norm:
            yield from self._norm(
                names.query_norm, "attention.query_norm", spec.head_dim, NormKind.RMS
            )
            yield from self._norm(names.key_norm, "attention.key_norm", spec.head_dim, NormKind.RMS)
        yield from self._linear(
            names.attention_output,
            "attention.output",
            (hidden, spec.query_size),
            bias=spec.output_bias,
        )
        if spec.post_norm:
            post = names.attention_post_norm
            yield from self._norm(post, "attention_post_norm", hidden, spec.norm)
        yield from self._norm(names.mlp_norm, "mlp_norm", hidden, spec.norm)
        yield from self._mlp()
        if spec.post_norm:
            yield from self._norm(names.mlp_post_norm, "mlp_post_norm", hidden, spec.norm)

    def _qkv(self) -> Iterator[TensorPlace]:
        spec, names = self.spec, self.names
        parameter, bias, q, kv = "attention.qkv", spec.qkv_bias, spec.query_size, spec.kv_size
        if names.qkv:
            shape = (q + 2 * kv, spec.hidden_size)
            yield from self._linear(names.qkv, parameter, shape, bias=bias)
            return
        rows = ((names.query, q, 0), (names.key, kv, q), (names.value, kv, q + kv))
        for name, count, first in rows:
            storage = names.matrices if name == names.value else names.query_key
            shape = (count, spec.hidden_size)
            yield from self._linear(name, parameter, shape, first, bias=bias, storage=storage)

    def _mlp(self) -> Iterator[TensorPlace]:
        spec, names, bias = self.spec, self.names, self.spec.mlp_bias
        wide = (spec.ffn_size, spec.hidden_size)
        if spec.gated:
            yield from self._linear(names.gate, "mlp.gate_up", wide, bias=bias)
            yield from self._linear(names.up, "mlp.gate_up", wide, spec.ffn_size, bias=bias)
        else:
            yield from self._linear(names.up, "mlp.up", wide, bias=bias)
        narrow = (spec.hidden_size, spec.ffn_size)
        yield from self._linear(names.down, "mlp.down", narrow, bias=bias)

    def _linear(
        self,
        name: str,
        parameter: str,
        shape: tuple[int, int],
        first: int = 0,
        *,
        bias: bool,
        storage: Storage | None = None,
    ) -> Iterator[TensorPlace]:
        """`shape` is [rows, columns] of the map, however the file stores it."""
        storage = storage or self.names.matrices
        stored = shape[::-1] if storage is Storage.TRANSPOSED else shape
        name, dim = self.prefix + name, self.spec.head_dim
        yield TensorPlace(f"{name}.weight", stored, parameter, first, storage, dim)
        if bias:  # a transposed column is the same row
            of_bias = Storage.PLAIN if storage is Storage.TRANSPOSED else storage
            place = f"{parameter}.bias"
            yield TensorPlace(f"{name}.bias", shape[:1], place, first, of_bias, dim)

    def _norm(self, name: str, parameter: str, size: int, kind: NormKind) -> Places:
        return _norm(self.names, self.prefix + name, parameter, size, kind)


def _norm(names: NameMap, name: str, parameter: str, size: int, kind: NormKind) -> Places:
    weight = TensorPlace(f"{name}.weight", (size,), f"{parameter}.weight", storage=names.norms)
    if kind is NormKind.RMS:
        return (weight,)
    return (weight, TensorPlace(f"{name}.bias", (size,), f"{parameter}.bias"))
