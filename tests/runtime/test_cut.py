"""Shares cut straight from the file: all of a layer's shares together are that layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mesh.errors import PlanError
from planner.plan import Span
from runtime.checkpoints import Model, open_model
from runtime.compute import compiled, kernels
from runtime.compute.linear import Linear
from runtime.compute.precision import Precision
from runtime.cut import WHOLE, Cut
from runtime.kv_cache import LayerCache
from runtime.models.block import Block, Run
from runtime.models.decoder_block import DecoderCache, DecoderLayer, Target
from runtime.models.encoder_block import EncoderLayer
from runtime.models.spec import DecoderSpec
from tests.runtime.holed_copy import holed_share
from tests.runtime.models.hand_cut import randn, together
from tests.runtime.plain import plain

pytest.importorskip("transformers")

from tests.runtime.every_family import FAMILIES, QUANTISED, write_one

ROWS, SOURCE_ROWS = 5, 7
PRECISIONS = (Precision.FP32, Precision.BF16, Precision.INT8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each is written once."""

    @cache
    def written(name: str) -> Path:
        return write_one(name, tmp_path_factory.mktemp("model"))

    return written


# --- cutting --------------------------------------------------------------------------------------


def sizes(model: Model) -> tuple[int, int]:
    """The heads and columns that shares count."""
    spec = model.spec
    if isinstance(spec, DecoderSpec):
        return spec.heads, spec.ffn_size
    return spec.encoder.heads, spec.encoder.ffn_size


def spans(marks: list[int]) -> list[Span]:
    return [Span(first, last) for first, last in zip(marks, marks[1:], strict=False)]


def even(count: int, shares: int) -> list[Span]:
    return spans([count * index // shares for index in range(shares + 1)])


def cuts(heads: list[Span], columns: list[Span]) -> list[Cut]:
    pairs = zip(heads, columns, strict=True)
    return [Cut(*pair, closing_bias=index == 0) for index, pair in enumerate(pairs)]


def layer_of(model: Model, index: int, cut: Cut = WHOLE) -> Any:
    loaded = model.load_layer(index, cut=cut)
    return loaded if isinstance(loaded, Block) else loaded.layer


def at(model: Model, layer: Any, cut: Cut) -> Any:
    """The first pass of a conversation, over caches of the share's own heads."""
    spec = model.share_spec(cut)
    if isinstance(layer, EncoderLayer):
        return None
    if isinstance(layer, DecoderLayer):
        assert not isinstance(spec, DecoderSpec)
        assert spec.decoder is not None
        memory = DecoderCache(spec.decoder, 64)
        layer.remember(randn(SOURCE_ROWS, spec.hidden_size), memory)
        return Target(0, memory)
    assert isinstance(spec, DecoderSpec)
    window = spec.layers[layer.index].window
    return (Run(0, ROWS, 0, LayerCache(spec.kv_heads, spec.head_dim, window, 64)),)


@torch.inference_mode()
def pass_through(model: Model, index: int, of: list[Cut]) -> Tensor:
    layers = [layer_of(model, index, cut) for cut in of]
    ats = [at(model, layer, cut) for layer, cut in zip(layers, of, strict=True)]
    return together(layers, randn(ROWS, model.spec.hidden_size), ats)


def assert_whole(model: Model, index: int, of: list[Cut], atol: float = 2e-5) -> None:
    whole, shared = pass_through(model, index, [WHOLE]), pass_through(model, index, of)
    scale = float(whole.abs().max())
    assert (whole - shared).abs().max() <= atol * scale, of


# --- all shares together --------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_shares_of_each_family_add_up(
    name: str, precision: Precision, models: Callable[[str], Path]
) -> None:
    model = open_model(models(name), precision)
    heads, columns = sizes(model)
    for index in FAMILIES[name]:
        least = min(heads, 2 if name in ("bart", "whisper converted") else 4)
        for count in range(2, least + 1):
            assert_whole(model, index, cuts(even(heads, count), even(columns, count)))


@pytest.mark.parametrize("name", ["llama with all biases", "gpt2", "t5-1.1", "whisper"])
@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_shares_that_are_cut_anywhere_add_up(
    name: str, models: Callable[[str], Path], data: st.DataObject
) -> None:
    model = open_model(models(name), data.draw(st.sampled_from(PRECISIONS)))
    heads, columns = sizes(model)
    count = data.draw(st.integers(2, heads))

    def anywhere(size: int) -> list[Span]:
        marks = st.lists(st.integers(1, size - 1), min_size=count - 1, max_size=count - 1)
        drawn = data.draw(marks.filter(lambda found: len(set(found)) == len(found)))
        return spans([0, *sorted(drawn), size])

    assert_whole(model, FAMILIES[name][-1], cuts(anywhere(heads), anywhere(columns)))


@pytest.mark.parametrize("name", QUANTISED)
def test_blocks_that_a_cut_goes_through_lose_nothing(
    name: str, models: Callable[[str], Path]
) -> None:
    """Heads of 128 and 101 columns, among blocks of up to 256 weights."""
    model = open_model(models(name), Precision.INT8)
    heads = spans([0, 1, 4])
    assert_whole(model, 1, cuts(heads, spans([0, 101, 512])))
    assert_whole(model, 1, cuts(heads, spans([0, 256, 512])))
    exact = open_model(models(name), Precision.FP32)
    assert_whole(exact, 1, cuts(heads, spans([0, 101, 512])))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "llama with all biases"])
def test_shares_add_up_without_compiled_loops(
    name: str, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "available", lambda: False)
    monkeypatch.setattr(kernels, "reads_blocks", lambda: False)
    model = open_model(models(name), Precision.INT8)
    heads, columns = sizes(model)
    assert_whole(model, 1, cuts(spans([0, 1, heads]), spans([0, 37, columns])))


# --- what one share is ----------------------------------------------------------------------------


def matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights that each map computes with, in fp32."""
    for name, module in layer.named_modules():
        if isinstance(module, Linear):
            eye = torch.eye(module.columns)
            bias = 0 if module.bias is None else module.bias
            yield name, (module(eye) - bias).T


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*QUANTISED, "qwen2", "gpt2", "llama 3 as gguf"])
@torch.inference_mode()
def test_a_share_has_the_rows_and_columns_of_the_whole(
    name: str, precision: Precision, models: Callable[[str], Path]
) -> None:
    model = open_model(models(name), precision)
    spec = model.spec
    assert isinstance(spec, DecoderSpec)
    dim, group = spec.head_dim, spec.heads // spec.kv_heads
    heads, columns = Span(1, spec.heads), Span(7, spec.ffn_size - 33)
    share = dict(matrices(layer_of(model, 1, Cut(heads, columns, closing_bias=False))))
    whole = dict(matrices(layer_of(model, 1)))
    kv, keys = heads.first // group, spec.query_size
    qkv = [
        slice(heads.first * dim, keys),
        slice(keys + kv * dim, keys + spec.kv_size),
        slice(keys + spec.kv_size + kv * dim, keys + 2 * spec.kv_size),
    ]
    mine = slice(columns.first, columns.last)
    expected = {
        "attention.qkv": torch.cat([whole["attention.qkv"][rows] for rows in qkv]),
        "attention.output": whole["attention.output"][:, dim:],
        "mlp.down": whole["mlp.down"][:, mine],
    }
    if spec.gated:
        gate, up = whole["mlp.gate_up"].chunk(2)
        expected["mlp.gate_up"] = torch.cat([gate[mine], up[mine]])
    else:
        expected["mlp.up"] = whole["mlp.up"][mine]
    assert share.keys() == expected.keys()
    for at_name, weights in expected.items():
        assert share[at_name].shape == weights.shape
        assert (share[at_name] - weights).abs().max() <= 1e-6 * weights.abs().max(), at_name


@pytest.mark.parametrize("name", [*FAMILIES, "Q4_K", "Q8_0"])
def test_a_device_needs_only_the_bytes_of_its_share(
    name: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    path = models(name)
    model = open_model(path, Precision.INT8)
    heads, columns = sizes(model)
    index, cut = FAMILIES.get(name, (1,))[-1], cuts(even(heads, 2), even(columns, 2))[1]
    span = Span(index, index + 1)
    part = holed_share(path, tmp_path / "copy", span, cut, Precision.INT8)
    assert part.model_id == model.model_id
    expected = layer_of(model, index, cut)
    assert state(layer_of(part, index, cut)) == state(expected)

    def wanted(of: Cut) -> int:
        return sum(one.size_bytes for one in model.ranges_of(span, of))

    assert wanted(cut) < wanted(WHOLE), "it fetches less than the layer"


def state(layer: nn.Module) -> dict[str, bytes]:
    """All that it computes with."""
    values = {name: plain(value).numpy().tobytes() for name, value in layer.state_dict().items()}
    maps = {name: weights.numpy().tobytes() for name, weights in matrices(layer)}
    return values | maps


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*FAMILIES, *QUANTISED])
def test_the_planner_is_told_what_a_share_weighs(
    name: str, precision: Precision, models: Callable[[str], Path]
) -> None:
    model = open_model(models(name), precision)
    profile = model.profile()
    heads, columns = sizes(model)
    for index in FAMILIES.get(name, (0, 1)):
        kind = profile.cut_of(index)
        assert kind is not None
        assert kind.whole_bytes == profile.layers[index].weight_bytes
        # Keys of a Whisper have no biases in the file; in memory they have zeros.
        zeros = 2 * 4 * model.spec.hidden_size if name.startswith("whisper") else 0
        assert 0 <= held(model, index, WHOLE) - kind.whole_bytes <= zeros
        biases = 3 * 4 * model.spec.hidden_size
        for cut in cuts(even(heads, 2), spans([0, columns // 3, columns])):
            extent = model.extent_of(index, cut)
            promised = kind.share_bytes(extent.heads, extent.columns)
            spare = 0 if cut.closing_bias else biases
            assert -zeros <= promised - held(model, index, cut) <= spare


def held(model: Model, index: int, cut: Cut) -> int:
    """What a loaded layer, with what goes with it, takes in memory."""
    loaded = model.load_layer(index, cut=cut)
    modules: list[nn.Module | None] = [loaded] if isinstance(loaded, Block) else []
    if not isinstance(loaded, Block):
        modules = [loaded.layer, loaded.source, loaded.middle, loaded.target]
    total = 0
    for module in filter(None, modules):
        total += sum(parameter.nbytes for parameter in module.parameters())
        for each in module.modules():
            for matrix in each.matrices if isinstance(each, Linear) else ():
                arrays = (matrix.data, matrix.scales, matrix.minima)
                total += sum(array.nbytes for array in arrays if array is not None)
    return total


# --- the head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "gpt2", "Q6_K", "t5-1.1", "bart", "whisper"])
@torch.inference_mode()
def test_rows_of_the_vocabulary_are_those_of_the_whole_head(
    name: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    path = models(name)
    model = open_model(path, Precision.INT8)
    hidden = randn(3, model.spec.hidden_size)
    vocabulary = model.spec.vocabulary
    whole = model.load_head().logits(hidden)
    marks = [0, 31, vocabulary - 1, vocabulary]
    parts = [model.load_head(vocab=span).logits(hidden) for span in spans(marks)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)
    cut = Cut(vocab=Span(31, vocabulary - 1))
    copy = holed_share(path, tmp_path / "copy", Span(0, 0), cut, Precision.INT8)
    assert torch.equal(copy.load_head(vocab=cut.vocab).logits(hidden), parts[1])


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut",
    [
        Cut(heads=Span(0, 0)),
        Cut(heads=Span(2, 9)),
        Cut(heads=Span(3, 1)),
        Cut(columns=Span(-4, 8)),
        Cut(columns=Span(8, 10**9)),
    ],
)
@pytest.mark.parametrize("name", ["qwen2", "t5-1.1"])
def test_a_share_of_what_is_not_there_is_refused_before_anything_is_read(
    name: str, cut: Cut, models: Callable[[str], Path]
) -> None:
    model = open_model(models(name))
    for ask in (model.load_layer, model.extent_of):
        with pytest.raises(PlanError, match="a share has at least one of the"):
            ask(0, cut=cut)
    with pytest.raises(PlanError, match="plan again"):
        model.ranges_of(Span(0, 1), cut)
    with pytest.raises(PlanError, match="rows of the vocabulary"):
        model.load_head(vocab=Span(1, 10**9))
    with pytest.raises(PlanError, match="rows of the vocabulary"):
        model.ranges_of(Span(0, 1), Cut(vocab=Span(9, 3)))
