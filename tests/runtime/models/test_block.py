"""The block against a plain transcription of its formulas: every position, chunk and variant."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.compute.linear import Linear, Part
from runtime.compute.precision import Precision
from runtime.formats.gguf import GGMLType
from runtime.kv_cache import LayerCache
from runtime.models.block import Block, Run, visible
from runtime.models.rope import Rope
from runtime.models.rope import rotate as turned
from runtime.models.spec import (
    Activation,
    DecoderSpec,
    LayerSpec,
    Llama3Scaling,
    NormKind,
    RopeSpec,
)
from tests.runtime.plain import plain

SPEC = DecoderSpec(
    architecture="test",
    hidden_size=32,
    ffn_size=48,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocabulary=10,
    context=64,
    norm_eps=1e-6,
    query_scale=0.3,
    activation=Activation.GELU_TANH,
    layers=(LayerSpec(None, RopeSpec(1e4)), LayerSpec(5, RopeSpec(100.0, factor=4.0))),
    tied_head=True,
    qk_norm=True,
    post_norm=True,
)
LLAMA = replace(SPEC, qk_norm=False, post_norm=False, activation=Activation.SILU)
LLAMA_3 = RopeSpec(1e4, scaling=Llama3Scaling(8.0, 1.0, 4.0, 16))
SPECS = {
    "as in gemma": SPEC,
    "as in llama": LLAMA,
    "as in llama 3": replace(LLAMA, layers=(LayerSpec(None, LLAMA_3), LayerSpec(4, LLAMA_3))),
    "as in qwen 2": replace(LLAMA, qkv_bias=True),
    "all biases": replace(LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True),
    "as in opt": replace(
        LLAMA,
        norm=NormKind.LAYER,
        gated=False,
        activation=Activation.RELU,
        layers=(LayerSpec(None, None), LayerSpec(5, None)),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    ),
    "the other gelu": replace(LLAMA, activation=Activation.GELU, gated=False),
    "one kv head a query head": replace(SPEC, kv_heads=4),
    "one kv head": replace(SPEC, kv_heads=1),
}
ACTIVATIONS = {
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.GELU: lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    Activation.SILU: lambda x: x * torch.sigmoid(x),
    Activation.RELU: lambda x: x.clamp(min=0),
}


def make(spec: DecoderSpec, index: int) -> Block:
    rope = spec.layers[index].rope
    block = Block(spec, index, None if rope is None else Rope(rope, spec.head_dim))
    generator = torch.Generator().manual_seed(7)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for module in block.modules():
        if isinstance(module, Linear):
            shape = (module.rows, module.columns)
            weight = torch.randn(shape, generator=generator) / module.columns**0.5
            raw = np.frombuffer(weight.numpy().tobytes(), np.uint8)
            module.fill([Part(raw, GGMLType.F32, module.rows)], Precision.FP32)
    return block


def empty_cache(spec: DecoderSpec, index: int) -> LayerCache:
    return LayerCache(spec.kv_heads, spec.head_dim, spec.layers[index].window, spec.context)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def rotate(x: Tensor, position: int, rope: RopeSpec | None) -> Tensor:
    if rope is None:
        return x
    half = x.shape[-1] // 2
    turned = x.clone()
    for pair in range(half):
        speed = rope.base ** (-pair / half) / rope.factor
        angle = torch.tensor(position * slowed(speed, rope.scaling))
        left, right = x[..., pair], x[..., pair + half]
        turned[..., pair] = left * angle.cos() - right * angle.sin()
        turned[..., pair + half] = right * angle.cos() + left * angle.sin()
    return turned


def slowed(speed: float, scaling: Llama3Scaling | None) -> float:
    """By wavelengths, as the paper's code has it."""
    if scaling is None:
        return speed
    wave = 2 * math.pi / speed
    if wave < scaling.context / scaling.high:
        return speed
    if wave > scaling.context / scaling.low:
        return speed / scaling.factor
    smooth = (scaling.context / wave - scaling.low) / (scaling.high - scaling.low)
    return (1 - smooth) * speed / scaling.factor + smooth * speed


class Plain:
    """The layer over all tokens [S, hidden] from position 0, token by token, head by head."""

    def __init__(self, block: Block, spec: DecoderSpec) -> None:
        self.p = {name: plain(tensor).double() for name, tensor in block.named_parameters()}
        self.spec, self.layer = spec, spec.layers[block.index]

    def __call__(self, hidden: Tensor) -> Tensor:
        x = hidden.double()
        added = self.attention(self.norm(x, "attention_norm"))
        x = x + (self.norm(added, "attention_post_norm") if self.spec.post_norm else added)
        added = self.mlp(self.norm(x, "mlp_norm"))
        return x + (self.norm(added, "mlp_post_norm") if self.spec.post_norm else added)

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.p[f"{name}.weight"]
        if self.spec.norm is NormKind.RMS:
            return rms_norm(x, weight)
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * weight + self.p[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p.get(f"{name}.bias", torch.zeros(1))

    def attention(self, x: Tensor) -> Tensor:
        spec, layer = self.spec, self.layer
        q, k, v = (
            part.reshape(len(x), -1, spec.head_dim)
            for part in torch.split(
                self.linear(x, "attention.qkv"), [spec.query_size, spec.kv_size, spec.kv_size], 1
            )
        )
        if spec.qk_norm:
            q = rms_norm(q, self.p["attention.query_norm.weight"])
            k = rms_norm(k, self.p["attention.key_norm.weight"])
        q = torch.stack([rotate(row, i, layer.rope) for i, row in enumerate(q)])
        k = torch.stack([rotate(row, i, layer.rope) for i, row in enumerate(k)])
        out = torch.zeros(len(x), spec.heads, spec.head_dim, dtype=torch.float64)
        for i in range(len(x)):
            first = 0 if layer.window is None else max(0, i - layer.window + 1)
            for head in range(spec.heads):
                group = head // (spec.heads // spec.kv_heads)
                scores = k[first : i + 1, group] @ q[i, head] * spec.query_scale
                out[i, head] = torch.softmax(scores, 0) @ v[first : i + 1, group]
        return self.linear(out.reshape(len(x), -1), "attention.output")

    def mlp(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.spec.activation]
        if not self.spec.gated:
            return self.linear(activate(self.linear(x, "mlp.up")), "mlp.down")
        gate, up = self.linear(x, "mlp.gate_up").chunk(2, dim=1)
        return self.linear(activate(gate) * up, "mlp.down")


@pytest.mark.parametrize("index", [0, 1], ids=["full", "sliding"])
@pytest.mark.parametrize("name", SPECS)
@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=15)
def test_any_chunks_give_what_the_formulas_give(name: str, index: int, chunks: list[int]) -> None:
    spec = SPECS[name]
    block, cache = make(spec, index), empty_cache(spec, index)
    hidden = torch.randn(sum(chunks), 32, generator=torch.Generator().manual_seed(1))
    parts, position = [], 0
    for count in chunks:
        rows = hidden[position : position + count]
        parts.append(block(rows, (Run(0, count, position, cache),)))
        position += count
    expected = Plain(block, spec)(hidden).float()
    assert torch.allclose(torch.cat(parts), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("index", [0, 1], ids=["full", "sliding"])
@given(steps=st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(deadline=None, max_examples=25)
def test_sessions_in_one_step_do_not_see_each_other(index: int, steps: list[list[int]]) -> None:
    """Three sessions go at different speeds; some sit out a step."""
    block, caches = make(SPEC, index), [empty_cache(SPEC, index) for _ in range(3)]
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randn(sum(s[i] for s in steps), 32, generator=generator) for i in range(3)]
    outs: list[list[Tensor]] = [[], [], []]
    positions = [0, 0, 0]
    for counts in steps:
        present = [i for i in range(3) if counts[i]]
        if not present:
            continue
        rows = [texts[i][positions[i] : positions[i] + counts[i]] for i in present]
        starts = [sum(counts[j] for j in present[:n]) for n in range(len(present))]
        runs = [
            Run(start, counts[i], positions[i], caches[i])
            for start, i in zip(starts, present, strict=True)
        ]
        out = block(torch.cat(rows), runs)
        for start, i in zip(starts, present, strict=True):
            outs[i].append(out[start : start + counts[i]])
            positions[i] += counts[i]
    for text, parts in zip(texts, outs, strict=True):
        if parts:
            expected = Plain(block, SPEC)(text).float()
            assert torch.allclose(torch.cat(parts), expected, atol=2e-5, rtol=1e-5)


def test_visible_is_causal_and_windowed() -> None:
    assert visible(2, 2, 0, 4, None).tolist() == [[True, True, True, False], [True] * 4]
    assert visible(2, 2, 0, 4, 2).tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_rope_tables_grow_without_changing() -> None:
    x = torch.randn(1, 3, 8)
    rope, grown = Rope(RopeSpec(1e4), 8), Rope(RopeSpec(1e4), 8)
    before = turned(x, rope.angles(((5, 3),)))
    grown.angles(((5000, 3),))
    assert torch.equal(before, turned(x, grown.angles(((5, 3),))))


def test_a_file_may_say_what_each_frequency_is_divided_by() -> None:
    x = torch.randn(2, 40, 8)
    divided = Rope(RopeSpec(1e4), 8, torch.tensor([4.0] * 4))
    slowed_all = Rope(RopeSpec(1e4, factor=4.0), 8)
    places = ((3, 40),)
    assert torch.allclose(turned(x, divided.angles(places)), turned(x, slowed_all.angles(places)))


def test_weights_are_no_part_of_a_gradient_unless_asked() -> None:
    assert not any(parameter.requires_grad for parameter in make(SPEC, 0).parameters())
