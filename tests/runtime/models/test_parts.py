"""Shares of a layer, cut by hand: what their closings give adds up to what the whole layer adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import GenerationFailed, PlanError
from runtime.kv_cache import LayerCache
from runtime.models.block import Run
from runtime.models.decoder_block import DecoderCache, DecoderLayer, Target
from runtime.models.encoder_block import ROWS_AT_ONCE, EncoderLayer
from runtime.models.seq2seq_spec import (
    ExitSpec,
    Output,
    RelativePositions,
    Seq2SeqSpec,
    StackSpec,
    TokenEntrySpec,
)
from runtime.models.spec import Activation, DecoderSpec, LayerSpec, NormKind, RopeSpec
from tests.runtime.models.hand_cut import (
    Cut,
    block,
    close,
    randn,
    random_weights,
    share_of_block,
    share_of_stack,
    shares_of,
    together,
)

HIDDEN, HEAD_DIM, COLUMNS, CONTEXT = 32, 8, 24, 64

GEMMA = DecoderSpec(
    architecture="test",
    hidden_size=HIDDEN,
    ffn_size=COLUMNS,
    heads=4,
    kv_heads=2,
    head_dim=HEAD_DIM,
    vocabulary=10,
    context=CONTEXT,
    norm_eps=1e-6,
    query_scale=0.3,
    activation=Activation.GELU_TANH,
    layers=(LayerSpec(None, RopeSpec(1e4)), LayerSpec(5, RopeSpec(1e4))),
    tied_head=True,
    qk_norm=True,
    post_norm=True,
)
OPT = replace(
    GEMMA,
    norm=NormKind.LAYER,
    gated=False,
    activation=Activation.RELU,
    layers=(LayerSpec(None, None), LayerSpec(5, None)),
    qk_norm=False,
    post_norm=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)
STACK = StackSpec(layers=1, heads=4, head_dim=HEAD_DIM, ffn_size=COLUMNS)
BART = Seq2SeqSpec(
    architecture="test",
    hidden_size=HIDDEN,
    vocabulary=10,
    encoder=STACK,
    decoder=STACK,
    norm=NormKind.LAYER,
    norm_eps=1e-5,
    pre_norm=False,
    biased=True,
    key_biased=True,
    activation=Activation.GELU,
    gated=False,
    scaled=True,
    relative=None,
    source=TokenEntrySpec(CONTEXT),
    target=TokenEntrySpec(CONTEXT),
    exit=ExitSpec(Output.LANGUAGE),
)
T5 = replace(
    BART,
    norm=NormKind.RMS,
    pre_norm=True,
    biased=False,
    key_biased=False,
    gated=True,
    scaled=False,
    relative=RelativePositions(8, 20),
)
Shares = list[tuple[Cut, Cut]]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[int, int, Shares]:
    """KV heads, query heads that read each, and shares of them."""
    kv_heads = draw(st.integers(1, 3))
    group = draw(st.integers(2 if kv_heads == 1 else 1, 3))
    return kv_heads, group, draw(shares_of(kv_heads * group, COLUMNS))


@st.composite
def headed(draw: st.DrawFn) -> tuple[int, Shares]:
    """Heads, each with keys and values of its own, and shares of them."""
    heads = draw(st.integers(2, 5))
    return heads, draw(shares_of(heads, COLUMNS))


# --- decoders -------------------------------------------------------------------------------------


def empty(spec: DecoderSpec, index: int) -> LayerCache:
    return LayerCache(spec.kv_heads, spec.head_dim, spec.layers[index].window, CONTEXT)


@pytest.mark.parametrize("index", [0, 1], ids=["full", "sliding"])
@pytest.mark.parametrize("family", [GEMMA, OPT], ids=["as in gemma", "as in opt"])
@given(cut=grouped(), steps=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), max_size=4))
@settings(deadline=None, max_examples=30)
def test_shares_of_a_block_add_up_wherever_they_cut_through_groups(
    family: DecoderSpec,
    index: int,
    cut: tuple[int, int, Shares],
    steps: list[tuple[int, int]],
) -> None:
    kv_heads, group, shares = cut
    spec = replace(family, heads=kv_heads * group, kv_heads=kv_heads)
    whole = random_weights(block(spec, index))
    made = [share_of_block(whole, spec, *share) for share in shares]
    layers = [whole, *(share for share, _ in made)]
    specs = [spec, *(mine for _, mine in made)]
    caches = [[empty(one, index) for one in specs] for _ in range(2)]  # of two sessions
    positions = [0, 0]
    for counts in [(3, 2), *steps, (1, 1)]:
        hidden = randn(sum(counts), HIDDEN)
        runs = [
            tuple(
                Run(first, count, position, of[number])
                for first, count, position, of in zip(
                    (0, counts[0]), counts, positions, caches, strict=True
                )
            )
            for number in range(len(layers))
        ]
        assert close(together(layers[1:], hidden, runs[1:]), layers[0](hidden, runs[0]))
        positions = [position + count for position, count in zip(positions, counts, strict=True)]


def test_query_heads_with_as_many_readers_side_by_side_are_one_pass() -> None:
    spec = replace(GEMMA, heads=6, kv_heads=4, kv_of_heads=(0, 1, 1, 2, 2, 3))
    assert block(spec, 0).attention._groups == (
        (slice(0, 1), slice(0, 1)),
        (slice(1, 5), slice(1, 3)),
        (slice(5, 6), slice(3, 4)),
    )
    even = replace(GEMMA, kv_of_heads=(0, 0, 1, 1))
    assert block(even, 0).attention._groups == block(GEMMA, 0).attention._groups


# --- encoders, and decoders that look at one ------------------------------------------------------


def with_heads(spec: Seq2SeqSpec, count: int) -> Seq2SeqSpec:
    stack = replace(STACK, heads=count)
    return replace(spec, encoder=stack, decoder=stack)


@pytest.mark.parametrize("family", [BART, T5], ids=["norms behind", "norms in front"])
@given(cut=headed(), rows=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_shares_of_an_encoder_layer_add_up(
    family: Seq2SeqSpec, cut: tuple[int, Shares], rows: int
) -> None:
    spec, shares = with_heads(family, cut[0]), cut[1]
    whole = random_weights(EncoderLayer(spec))
    layers = [share_of_stack(whole, spec, *share) for share in shares]
    hidden = randn(rows, HIDDEN)
    assert close(together(layers, hidden, [None] * len(layers)), whole(hidden))


@pytest.mark.parametrize("family", [BART, T5], ids=["norms behind", "norms in front"])
@given(cut=headed(), steps=st.lists(st.integers(1, 7), max_size=4))
@settings(deadline=None, max_examples=30)
def test_shares_of_a_decoder_layer_add_up_each_with_its_heads_of_the_source(
    family: Seq2SeqSpec, cut: tuple[int, Shares], steps: list[int]
) -> None:
    spec, shares = with_heads(family, cut[0]), cut[1]
    whole = random_weights(DecoderLayer(spec))
    made = [share_of_stack(whole, spec, *share) for share in shares]
    layers, encoded = [whole, *made], randn(9, HIDDEN)
    caches = [DecoderCache(replace(STACK, heads=one.cross.heads), CONTEXT) for one in layers]
    for layer, cache in zip(layers, caches, strict=True):
        layer.remember(encoded, cache)
    position = 0
    for rows in [3, *steps, 1]:
        hidden = randn(rows, HIDDEN)
        ats = [Target(position, cache) for cache in caches]
        assert close(together(made, hidden, ats[1:]), whole(hidden, ats[0]))
        position += rows


# --- some of the rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 7, ROWS_AT_ONCE + 1])
def test_some_rows_of_an_encoder_find_what_they_find_among_all(first: int) -> None:
    """Distances are those of the whole source, wherever the rows are cut."""
    part = random_weights(EncoderLayer(T5)).attention
    opened = randn(ROWS_AT_ONCE + 20, 3 * STACK.inner_size)
    q, keys, values = part.project(opened, None)
    some = part.attend(q[:, first:], keys, values, first)
    assert close(some, part.inside(opened, None)[first:])


@pytest.mark.parametrize(
    "made",
    [block(GEMMA, 0), block(OPT, 0), EncoderLayer(BART), EncoderLayer(T5), DecoderLayer(T5)],
    ids=["gemma", "opt", "bart's encoder", "t5's encoder", "t5's decoder"],
)
def test_between_the_parts_each_row_is_for_itself(made: Any) -> None:
    layer, cut = random_weights(made), [slice(0, 2), slice(2, 3), slice(3, 9)]
    hidden, added = randn(2, 9, HIDDEN)
    assert close(torch.cat([layer.enter(hidden[rows]) for rows in cut]), layer.enter(hidden))
    for index in range(len(layer.parts)):
        pieces = [layer.connect(index, hidden[rows], added[rows]) for rows in cut]
        for each, whole in zip(
            zip(*pieces, strict=True), layer.connect(index, hidden, added), strict=True
        ):
            assert close(torch.cat(each), whole)


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["heads", "ffn_size"])
def test_a_share_of_nothing_is_refused(field: str) -> None:
    what = "a share of zero heads" if field == "heads" else "a share of zero columns"
    none = {field: 0, "kv_heads": 0} if field == "heads" else {field: 0}
    with pytest.raises(PlanError, match=what):
        block(replace(GEMMA, **none), 0)
    stack = replace(STACK, **{field: 0})
    for kind in (EncoderLayer, DecoderLayer):
        with pytest.raises(PlanError, match=what):
            kind(replace(T5, encoder=stack, decoder=stack))


def test_a_target_before_its_source_is_refused_and_not_remembered() -> None:
    layer, cache = random_weights(DecoderLayer(BART)), DecoderCache(STACK, CONTEXT)
    with pytest.raises(GenerationFailed, match="before the source was encoded"):
        layer(randn(2, HIDDEN), Target(0, cache))
    assert cache.target.end == 0
