"""What a block does between its products: the compiled loops against torch's own operations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runtime.compute import pointwise, team
from runtime.compute.kinds import Gate, Heads

EPS = 1e-6

pytestmark = pytest.mark.skipif(not pointwise.fits(64), reason="llvmlite is not installed")


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


ROWS = st.integers(1, 9)
WIDTHS = st.sampled_from([32, 48, 64, 640])
SEEDS = st.integers(0, 999)


@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_a_norm(rows: int, width: int, seed: int) -> None:
    x, weight = numbers(seed, rows, width), numbers(seed + 1, width)
    assert near(pointwise.norm(x, weight, EPS), F.rms_norm(x, (width,), weight, EPS))


@given(rows=ROWS, width=WIDTHS, seed=SEEDS, post=st.booleans(), then=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_residual_leaves_its_operands_alone(
    rows: int, width: int, seed: int, post: bool, then: bool
) -> None:
    """A step that failed beside another's is computed again, from the same rows."""
    hidden, added = numbers(seed, rows, width), numbers(seed + 1, rows, width)
    before = hidden.clone(), added.clone()
    weights = [numbers(seed + 2, width) if post else None, numbers(seed + 3, width)]
    last = weights[1] if then else None
    total, normed = pointwise.residual(hidden, added, weights[0], last, EPS)
    more = added if weights[0] is None else F.rms_norm(added, (width,), weights[0], EPS)
    assert near(total, hidden + more)
    assert near(normed, F.rms_norm(hidden + more, (width,), last, EPS) if then else total)
    assert torch.equal(hidden, before[0])
    assert torch.equal(added, before[1])


@given(rows=ROWS, width=WIDTHS, seed=SEEDS, gate=st.sampled_from(Gate))
@settings(deadline=None, max_examples=40)
def test_a_gate(rows: int, width: int, seed: int, gate: Gate) -> None:
    x = 4 * numbers(seed, rows, 2 * width)
    activate = F.silu if gate is Gate.SILU else lambda one: F.gelu(one, approximate="tanh")
    assert near(pointwise.gated(x, gate), activate(x[:, :width]) * x[:, width:])


@pytest.mark.parametrize("gate", list(Gate))
def test_a_gate_takes_any_number(gate: Gate) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 1e4, -1e4, 1e30, -1e30])
    found = pointwise.gated(torch.cat([x.repeat(16)[:64], torch.ones(64)])[None], gate)[0, :10]
    assert torch.isfinite(found).all()
    assert near(found, F.silu(x) if gate is Gate.SILU else F.gelu(x, approximate="tanh"))


@given(
    rows=ROWS,
    queries=st.integers(1, 5),
    keys=st.integers(1, 3),
    dim=st.sampled_from([32, 64, 256]),
    normed=st.booleans(),
    turned=st.booleans(),
    seed=SEEDS,
)
@settings(deadline=None, max_examples=60)
def test_heads_are_normed_then_turned(
    rows: int, queries: int, keys: int, dim: int, normed: bool, turned: bool, seed: int
) -> None:
    heads = Heads(queries, keys, dim, normed, turned)
    qkv = numbers(seed, rows, (queries + 2 * keys) * dim)
    weights = (numbers(seed + 1, dim), numbers(seed + 2, dim))
    angle = 6 * numbers(seed + 3, rows, dim // 2)
    cos, sin = angle.cos().repeat(1, 2), torch.cat((-angle.sin(), angle.sin()), dim=1)
    found = pointwise.by_head(
        qkv, heads, weights if normed else None, (cos, sin) if turned else None, EPS
    )
    expected = qkv.view(rows, -1, dim).transpose(0, 1).clone()
    for first, last, weight in ((0, queries, weights[0]), (queries, queries + keys, weights[1])):
        part = expected[first:last]
        if normed:
            part = F.rms_norm(part, (dim,), weight, EPS)
        if turned:
            part = part * cos + part.roll(dim // 2, -1) * sin
        expected[first:last] = part
    assert near(found, expected)


@pytest.fixture
def _team_of_two() -> Iterator[None]:
    threads = torch.get_num_threads()
    team.assemble(2)
    yield
    team.assemble(threads)


@pytest.mark.usefixtures("_team_of_two")
def test_a_team_computes_the_same_bits() -> None:
    x, weight = numbers(1, 700, 640), numbers(2, 640)
    shared = pointwise.norm(x, weight, EPS), pointwise.gated(x, Gate.SILU)
    team.assemble(1)
    alone = pointwise.norm(x, weight, EPS), pointwise.gated(x, Gate.SILU)
    assert all(torch.equal(one, other) for one, other in zip(shared, alone, strict=True))


def test_a_number_that_is_none_stays_none() -> None:
    """A broken weight shows as NaN in the end, and is not hidden by a gate."""
    x = torch.full((1, 128), math.nan)
    assert pointwise.gated(x, Gate.GELU_TANH).isnan().all()
