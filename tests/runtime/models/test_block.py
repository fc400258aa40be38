"""The block against a plain transcription of its formulas: every position, chunk and variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.kv_cache import LayerCache
from runtime.models.block import Block, Rope, visible
from runtime.models.spec import Activation, DecoderSpec, LayerSpec, RopeSpec

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
    embedding_scale=1.0,
    qk_norm=True,
    post_norm=True,
    tied_head=True,
    logit_softcap=None,
    layers=(LayerSpec(None, RopeSpec(1e4)), LayerSpec(5, RopeSpec(100.0, factor=4.0))),
)
SPECS = {
    "as in gemma": SPEC,
    "as in llama": replace(SPEC, qk_norm=False, post_norm=False, activation=Activation.SILU),
    "one kv head a query head": replace(SPEC, kv_heads=4),
    "one kv head": replace(SPEC, kv_heads=1),
}


def make(spec: DecoderSpec, index: int) -> Block:
    block = Block(spec, index, Rope(spec.layers[index].rope, spec.head_dim))
    generator = torch.Generator().manual_seed(7)
    for parameter in block.parameters():
        size = parameter.shape[-1] if parameter.dim() > 1 else 1
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / size**0.5)
    return block


def empty_cache(spec: DecoderSpec, index: int) -> LayerCache:
    return LayerCache(spec.kv_heads, spec.head_dim, spec.layers[index].window, spec.context)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def rotate(x: Tensor, position: int, rope: RopeSpec) -> Tensor:
    half = x.shape[-1] // 2
    turned = x.clone()
    for pair in range(half):
        angle = torch.tensor(position / rope.factor / rope.base ** (pair / half))
        left, right = x[..., pair], x[..., pair + half]
        turned[..., pair] = left * angle.cos() - right * angle.sin()
        turned[..., pair + half] = right * angle.cos() + left * angle.sin()
    return turned


def plain(block: Block, spec: DecoderSpec, hidden: Tensor) -> Tensor:
    """The layer over all tokens [S, hidden] from position 0, token by token, head by head."""
    p = {name: tensor.double() for name, tensor in block.named_parameters()}
    layer = spec.layers[block.index]
    x = hidden.double()
    qkv = norm(x, p["attention_norm.weight"]) @ p["attention.qkv"].T
    q, k, v = (
        part.reshape(len(x), -1, spec.head_dim)
        for part in torch.split(qkv, [spec.query_size, spec.kv_size, spec.kv_size], dim=1)
    )
    if spec.qk_norm:
        q = norm(q, p["attention.query_norm.weight"])
        k = norm(k, p["attention.key_norm.weight"])
    q = torch.stack([rotate(row, i, layer.rope) for i, row in enumerate(q)])
    k = torch.stack([rotate(row, i, layer.rope) for i, row in enumerate(k)])
    out = torch.zeros(len(x), spec.heads, spec.head_dim, dtype=torch.float64)
    for i in range(len(x)):
        first = 0 if layer.window is None else max(0, i - layer.window + 1)
        for head in range(spec.heads):
            group = head // (spec.heads // spec.kv_heads)
            scores = k[first : i + 1, group] @ q[i, head] * spec.query_scale
            out[i, head] = torch.softmax(scores, 0) @ v[first : i + 1, group]
    added = out.reshape(len(x), -1) @ p["attention.output"].T
    x = x + (norm(added, p["attention_post_norm.weight"]) if spec.post_norm else added)
    gate, up = (norm(x, p["mlp_norm.weight"]) @ p["mlp.gate_up"].T).chunk(2, dim=1)
    gelu = spec.activation is Activation.GELU_TANH
    gate = F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)
    added = (gate * up) @ p["mlp.down"].T
    return x + (norm(added, p["mlp_post_norm.weight"]) if spec.post_norm else added)


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
        parts.append(block.forward(hidden[position : position + count], position, cache))
        position += count
    expected = plain(block, spec, hidden).float()
    assert torch.allclose(torch.cat(parts), expected, atol=2e-5)


def test_visible_is_causal_and_windowed() -> None:
    assert visible(2, 2, 0, 4, None).tolist() == [[True, True, True, False], [True] * 4]
    assert visible(2, 2, 0, 4, 2).tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_rope_tables_grow_without_changing() -> None:
    x = torch.randn(1, 3, 8)
    rope, grown = Rope(RopeSpec(1e4), 8), Rope(RopeSpec(1e4), 8)
    before = rope.rotate(x, 5)
    grown.rotate(x, 5000)
    assert torch.equal(before, grown.rotate(x, 5))


def test_weights_are_no_part_of_a_gradient_unless_asked() -> None:
    assert not any(parameter.requires_grad for parameter in make(SPEC, 0).parameters())
