"""A share of a layer: which of its heads and columns one device holds, and so which of its weights.

A map that opens a part keeps some of its rows, the one that closes it some of its columns: then
what the closings of all shares give adds up to what the whole layer would. Pure: no weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from mesh.errors import PlanError
from mesh.ids import PeerId
from planner.plan import Plan, Span
from runtime.models.seq2seq_spec import Seq2SeqSpec, StackSpec
from runtime.models.spec import DecoderSpec

NOTHING: Final = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """What one device has of each of its layers, and of the head. None: all of it.

    Heads and columns are counted as the model's first layer has them; of a layer that has others
    it is the same part.
    """

    heads: Span | None = None  # query heads
    columns: Span | None = None  # of the MLP
    closing_bias: bool = True  # of several shares, only one adds the biases behind the sums
    vocab: Span | None = None  # of the head. None: all, if the layers end the model; empty: none

    @property
    def of_layers(self) -> Cut:
        """The same without the head."""
        return replace(self, vocab=None)

    def has_head(self, *, ends: bool) -> bool:
        """Whether rows of the head are here; `ends` says whether the model's last layer is."""
        return ends if self.vocab is None else self.vocab.first != self.vocab.last


WHOLE: Final = Cut()


def cut_of(plan: Plan, device: PeerId) -> Cut:
    """What `device` has of its layers and of the head in this plan."""
    vocab = _vocab_of(plan, device)
    for stage in plan.stages:
        for index, share in enumerate(stage.shares):
            if share.device == device:
                is_whole = share.heads is None and share.columns is None
                return Cut(share.heads, share.columns, is_whole or index == 0, vocab)
    return Cut(vocab=vocab)


def _vocab_of(plan: Plan, device: PeerId) -> Span | None:
    if plan.head:
        return next((one.vocab for one in plan.head if one.device == device), NOTHING)
    return None if device == plan.stages[-1].lead else NOTHING


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a parameter: rows, in the order it has them, and columns. None: all."""

    rows: tuple[Span, ...] | None = None
    columns: Span | None = None


KeptOf = Mapping[str, Kept]  # by parameter; those that are not in it are kept whole


@dataclass(frozen=True, slots=True)
class Extent:
    """What is held of one layer; empty spans where a part is weighed alone."""

    heads: Span = NOTHING  # query heads
    kv_heads: Span = NOTHING
    inner: Span = NOTHING  # inputs of what closes attention: heads * head_dim
    columns: Span = NOTHING  # of the MLP
    down: Span = NOTHING  # inputs of what closes the MLP: columns
    closing_bias: bool = True


# --- decoders -------------------------------------------------------------------------------------


def decoder_share(spec: DecoderSpec, cut: Cut) -> DecoderSpec:
    """The spec of a share: that of a model with fewer heads and columns. Raises PlanError."""
    extent = decoder_extent(spec, cut)
    group = spec.heads // spec.kv_heads
    heads, kv_heads = extent.heads, extent.kv_heads
    readers = tuple(head // group - kv_heads.first for head in range(heads.first, heads.last))
    each, rest = divmod(len(heads), len(kv_heads)) if len(kv_heads) else (0, 0)
    is_even = not rest and all(kv == head // each for head, kv in enumerate(readers))
    return replace(
        spec,
        heads=len(heads),
        kv_heads=len(kv_heads),
        kv_of_heads=None if is_even else readers,
        ffn_size=len(extent.columns),
        closing_bias=extent.closing_bias,
    )


def decoder_extent(spec: DecoderSpec, cut: Cut) -> Extent:
    """Raises PlanError for a cut that has nothing of a layer, or what it has not."""
    group = spec.heads // spec.kv_heads
    heads = _part(cut.heads, spec.heads, spec.heads, "heads")
    kv_heads = Span(heads.first // group, -(-heads.last // group))
    columns = _part(cut.columns, spec.ffn_size, spec.ffn_size, "columns")
    return Extent(heads, kv_heads, _times(heads, spec.head_dim), columns, columns, cut.closing_bias)


def decoder_kept(spec: DecoderSpec, extent: Extent) -> KeptOf:
    """Of a Block's parameters, those that a share has not all of."""
    keys = spec.query_size
    queries = _times(extent.heads, spec.head_dim)
    kv = _times(extent.kv_heads, spec.head_dim)
    qkv = (queries, _moved(kv, keys), _moved(kv, keys + spec.kv_size))
    wide = {"mlp.gate_up": _twice(extent.columns, spec.ffn_size), "mlp.up": (extent.columns,)}
    closings = {"attention.output": extent.inner, "mlp.down": extent.down}
    return _maps({"attention.qkv": qkv, **wide}, closings, extent)


# --- encoders, and decoders that look at one ------------------------------------------------------


def seq2seq_share(spec: Seq2SeqSpec, cut: Cut) -> Seq2SeqSpec:
    """The spec of a share: that of a model with fewer heads and columns in each stack. Raises
    PlanError.
    """
    encoder = _stack_share(spec, spec.encoder, cut)
    decoder = None if spec.decoder is None else _stack_share(spec, spec.decoder, cut)
    return replace(spec, encoder=encoder, decoder=decoder, closing_bias=cut.closing_bias)


def seq2seq_extent(spec: Seq2SeqSpec, index: int, cut: Cut) -> Extent:
    """Raises PlanError for a cut that has nothing of a layer, or what it has not."""
    return _stack_extent(spec, spec.stack(index), cut)


def seq2seq_kept(spec: Seq2SeqSpec, index: int, extent: Extent) -> KeptOf:
    """Of a layer's parameters, those that a share has not all of."""
    stack = spec.stack(index)
    inner, ffn = stack.inner_size, stack.ffn_size
    queries, kv = _times(extent.heads, stack.head_dim), _times(extent.kv_heads, stack.head_dim)
    openings = {
        "attention.qkv": (queries, _moved(kv, inner), _moved(kv, 2 * inner)),
        "cross.query": (queries,),
        "cross.key_value": (kv, _moved(kv, inner)),
        "mlp.up": _twice(extent.columns, ffn) if spec.gated else (extent.columns,),
    }
    closings = {
        "attention.output": extent.inner,
        "cross.output": extent.inner,
        "mlp.down": extent.down,
    }
    # A bias by distance has a column for each head.
    by_head = {"attention.bias.weight": Kept(columns=extent.heads)}
    return {**_maps(openings, closings, extent), **by_head}


def vocab_rows(vocab: Span | None, vocabulary: int) -> Span:
    """All rows where `vocab` is None. Raises PlanError for none, or for rows that are not there."""
    return _part(vocab, vocabulary, vocabulary, "rows of the vocabulary")


def head_kept(vocab: Span) -> KeptOf:
    """Of what stands behind the last layer, some rows of the vocabulary; all else is whole."""
    rows = Kept(rows=(vocab,))
    return {"output": rows, "output.bias": rows, "logits_bias.weight": Kept(columns=vocab)}


def _stack_extent(spec: Seq2SeqSpec, stack: StackSpec, cut: Cut) -> Extent:
    heads = _part(cut.heads, spec.encoder.heads, stack.heads, "heads")
    columns = _part(cut.columns, spec.encoder.ffn_size, stack.ffn_size, "columns")
    return Extent(heads, heads, _times(heads, stack.head_dim), columns, columns, cut.closing_bias)


def _stack_share(spec: Seq2SeqSpec, stack: StackSpec, cut: Cut) -> StackSpec:
    extent = _stack_extent(spec, stack, cut)
    return replace(stack, heads=len(extent.heads), ffn_size=len(extent.columns))


# --- spans ----------------------------------------------------------------------------------------


def _maps(
    openings: Mapping[str, tuple[Span, ...]], closings: Mapping[str, Span], extent: Extent
) -> KeptOf:
    """Rows of the maps that open a part and of their biases; columns of those that close one."""
    kept = {}
    for name, rows in openings.items():
        kept[name] = kept[f"{name}.bias"] = Kept(rows=rows)
    for name, columns in closings.items():
        kept[name] = Kept(columns=columns)
        kept[f"{name}.bias"] = Kept() if extent.closing_bias else Kept(rows=())
    return kept


def _part(span: Span | None, count: int, here: int, what: str) -> Span:
    """The part of `here` heads or columns that `span` is of `count`."""
    if span is None:
        return Span(0, here)
    part = span.scaled(count, here)
    if not 0 <= span.first < span.last <= count or not len(part):
        raise PlanError(
            f"a share has at least one of the {count} {what}; this one has those from "
            f"{span.first} up to {span.last}: plan again"
        )
    return part


def _times(span: Span, width: int) -> Span:
    return Span(span.first * width, span.last * width)


def _moved(span: Span, by: int) -> Span:
    return Span(span.first + by, span.last + by)


def _twice(span: Span, width: int) -> tuple[Span, Span]:
    """The same of a gate and of what it lets through, which stands below it."""
    return span, _moved(span, width)
