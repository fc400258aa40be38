"""Layers cut by hand into shares, whose weights are random and fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from runtime.compute.linear import Linear
from runtime.models.block import Block
from runtime.models.decoder_block import DecoderLayer
from runtime.models.encoder_block import EncoderLayer
from runtime.models.parts import Layer
from runtime.models.rope import Rope
from runtime.models.seq2seq_spec import Seq2SeqSpec
from runtime.models.spec import DecoderSpec

Cut = tuple[int, int]  # [first, last) of heads or columns


@st.composite
def cuts(draw: st.DrawFn, count: int, shares: int) -> list[Cut]:
    """So many runs of 0..count, none of them empty."""
    inner = st.lists(
        st.integers(1, count - 1), min_size=shares - 1, max_size=shares - 1, unique=True
    )
    marks = [0, *sorted(draw(inner)), count]
    return list(zip(marks, marks[1:], strict=False))


@st.composite
def shares_of(draw: st.DrawFn, heads: int, columns: int) -> list[tuple[Cut, Cut]]:
    """2 or 3 shares, the heads and the columns of each."""
    count = draw(st.integers(2, min(3, heads)))
    return list(zip(draw(cuts(heads, count)), draw(cuts(columns, count)), strict=True))


def times(span: Cut, width: int, first: int = 0) -> list[int]:
    return list(range(first + span[0] * width, first + span[1] * width))


def random_weights(layer: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(7)
    for module in layer.modules():
        if isinstance(module, Linear):
            weight = torch.randn(module.rows, module.columns, generator=generator)
            module.weight = nn.Parameter(weight / module.columns**0.5, requires_grad=False)
    for name, parameter in layer.named_parameters():
        if name.endswith("bias") or not any(map(name.startswith, linears(layer))):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def linears(layer: nn.Module) -> list[str]:
    return [name for name, module in layer.named_modules() if isinstance(module, Linear)]


def take(
    share: nn.Module, whole: nn.Module, rows: dict[str, list[int]], columns: dict[str, list[int]]
) -> None:
    """Fills a share: of the maps named here, these rows or columns; all else as it is."""
    for name, module in share.named_modules():
        if not isinstance(module, Linear):
            continue
        of = whole.get_submodule(name)
        kept = of.weight[rows[name]] if name in rows else of.weight[:, columns[name]]
        module.weight = nn.Parameter(kept.contiguous(), requires_grad=False)
        assert module.weight.shape == (module.rows, module.columns)
        if module.bias is not None:
            module.bias.copy_(of.bias[rows[name]] if name in rows else of.bias)
    for name, parameter in share.named_parameters():
        if not any(map(name.startswith, linears(share))) and name != "attention.bias.weight":
            parameter.copy_(whole.get_parameter(name))


def block(spec: DecoderSpec, index: int) -> Block:
    rope = spec.layers[index].rope
    return Block(spec, index, None if rope is None else Rope(rope, spec.head_dim))


def share_of_block(
    whole: Block, spec: DecoderSpec, heads: Cut, columns: Cut
) -> tuple[Block, DecoderSpec]:
    group = spec.heads // spec.kv_heads
    kv = heads[0] // group, -(-heads[1] // group)
    readers = tuple(head // group - kv[0] for head in range(*heads))
    is_even = len({readers.count(head) for head in readers}) == 1
    mine = replace(
        spec,
        heads=heads[1] - heads[0],
        kv_heads=kv[1] - kv[0],
        kv_of_heads=None if is_even else readers,
        ffn_size=columns[1] - columns[0],
        closing_bias=heads[0] == 0,
    )
    share = block(mine, whole.index)
    dim, keys = spec.head_dim, spec.query_size
    qkv = times(heads, dim) + times(kv, dim, keys) + times(kv, dim, keys + spec.kv_size)
    wide = times(columns, 1)
    rows = {
        "attention.qkv": qkv,
        "mlp.up": wide,
        "mlp.gate_up": wide + times(columns, 1, spec.ffn_size),
    }
    take(share, whole, rows, {"attention.output": times(heads, dim), "mlp.down": wide})
    return share, mine


def share_of_stack(
    whole: EncoderLayer | DecoderLayer,
    spec: Seq2SeqSpec,
    heads: Cut,
    columns: Cut,
) -> Any:
    """Both stacks of `spec` are alike."""
    inner, dim = spec.encoder.inner_size, spec.encoder.head_dim
    stack = replace(spec.encoder, heads=heads[1] - heads[0], ffn_size=columns[1] - columns[0])
    mine = replace(spec, encoder=stack, decoder=stack, closing_bias=heads[0] == 0)
    share = type(whole)(mine)
    qkv = [row for number in range(3) for row in times(heads, dim, number * inner)]
    own, wide = times(heads, dim), times(columns, 1)
    up = wide + times(columns, 1, spec.encoder.ffn_size) if spec.gated else wide
    rows = {
        "attention.qkv": qkv,
        "cross.query": own,
        "cross.key_value": own + times(heads, dim, inner),
        "mlp.up": up,
    }
    closings = {"attention.output": own, "cross.output": own, "mlp.down": wide}
    take(share, whole, rows, closings)
    if share.attention.bias is not None and whole.attention.bias is not None:
        share.attention.bias.weight.copy_(whole.attention.bias.weight[:, times(heads, 1)])
    return share


def together(layers: Sequence[Layer[Any]], hidden: Tensor, ats: Sequence[Any]) -> Tensor:
    """A pass through all shares of a layer."""
    first = layers[0]
    x = first.enter(hidden)
    for index in range(len(first.parts)):
        added = torch.zeros_like(hidden)
        for layer, at in zip(layers, ats, strict=True):
            part = layer.parts[index]
            added += part.closing(part.inside(part.opening(x), at))
        hidden, x = first.connect(index, hidden, added)
    return hidden


def randn(*shape: int) -> Tensor:
    """The same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, expected: Tensor) -> bool:
    return torch.allclose(ours, expected, atol=1e-5, rtol=1e-5)
