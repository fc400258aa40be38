"""What numbers lose on their way, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import GenerationFailed, ProtocolError
from mesh.ids import SessionId
from mesh.tensor_frame import DType
from planner.plan import Wire
from runtime.stage import Slice
from runtime.walks.order import from_bytes, to_bytes
from runtime.walks.sequence import as_rows, by_head
from runtime.walks.wire import numbers_in, pack, unpack
from tests.runtime.walks.together import exchanges

SEEDS = st.integers(0, 1 << 30)
BOUNDS = {Wire.FP32: 0.0, Wire.FP16: 2.0**-11, Wire.INT8: 0.5 / 127}


@given(SEEDS, st.integers(1, 5), st.integers(1, 300), st.sampled_from(Wire), st.floats(1e-3, 1e3))
def test_no_number_is_further_off_than_its_type_allows(
    seed: int, rows: int, width: int, wire: Wire, scale: float
) -> None:
    numbers = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale
    dtype, packed = pack(numbers, wire)
    back = unpack(packed)
    assert numbers_in(dtype, packed.shape[1]) == width
    allowed = BOUNDS[wire] * numbers.abs().amax(dim=1, keepdim=True) * 1.001 + 1e-7
    assert bool(((back - numbers).abs() <= allowed).all())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wire", "wrong"),
    [(Wire.FP16, 7e4), *((wire, one) for wire in (Wire.FP16, Wire.INT8) for one in (INF, NAN))],
)
def test_what_does_not_fit_travels_as_it_is(wire: Wire, wrong: float) -> None:
    numbers = torch.ones(2, 8)
    numbers[1, 3] = wrong
    dtype, packed = pack(numbers, wire)
    assert dtype is DType.FLOAT32
    assert torch.equal(unpack(packed).nan_to_num(1.5), numbers.nan_to_num(1.5))


def test_a_large_key_costs_small_values_nothing() -> None:
    """Keys of trained models have a few numbers that are many times all others."""
    keys, values = torch.randn(2, 5, 16), torch.randn(2, 5, 16) / 100
    keys[0, 3, 7] = 1000.0
    _, packed = pack(as_rows(keys, values), Wire.INT8)
    back = by_head(unpack(packed), 2)
    assert float((back[1] - values).abs().max()) <= 0.5 / 127 * float(values.abs().max()) * 1.001
    assert float((back[0] - keys)[1].abs().max()) < 0.05
    assert torch.equal(torch.stack(by_head(as_rows(keys, values), 2)), torch.stack((keys, values)))


def test_the_link_remembers_what_did_not_fit() -> None:
    first, second, _ = exchanges(3, Wire.FP16)
    for one in (first, second):
        one.start_pass()
    first.send(7, {1: torch.full((1, 4), 1e6)})
    first.send(8, {1: torch.full((1, 4), 1 / 3)})
    assert torch.equal(second.take(0, 7, (1, 4)), torch.full((1, 4), 1e6))
    assert torch.equal(second.take(0, 8, (1, 4)), torch.full((1, 4), 1 / 3)), "as fp32, now"
    assert first.wires == [Wire.FP16, Wire.FP32, Wire.FP16]


def test_a_piece_of_another_shape_is_refused() -> None:
    first, second = exchanges(2)
    for one in (first, second):
        one.start_pass()
    first.send(3, {1: torch.zeros(2, 4)})
    with pytest.raises(GenerationFailed, match=r"sent \[2, 4\] in place of \[3, 4\]"):
        second.take(0, 3, (3, 4))


def order() -> list[Slice]:
    return [
        Slice(SessionId(f"{n + 1:032x}"), 5 * n, torch.randn(n + 1, 24), choose=n == 1)
        for n in range(3)
    ]


def test_an_order_says_what_was_ordered() -> None:
    asked = order()
    for one, same in zip(asked, from_bytes(to_bytes(asked), 100, 24), strict=True):
        assert (one.session, one.position, one.choose) == (same.session, same.position, same.choose)
        assert torch.equal(one.rows, same.rows)


@given(st.integers(0, 700), st.integers(0, 255))
def test_a_damaged_order_is_refused_or_read_and_nothing_else(place: int, value: int) -> None:
    packed = to_bytes(order())
    packed.view(-1)[place % packed.numel()] = value
    try:
        slices = from_bytes(packed, 100, 24)
    except ProtocolError:
        return
    assert 0 < sum(len(one.rows) for one in slices) <= 100


@pytest.mark.parametrize(("rows", "width"), [(5, 24), (100, 25)])
def test_an_order_for_another_stage_is_refused(rows: int, width: int) -> None:
    with pytest.raises(ProtocolError):
        from_bytes(to_bytes(order()), rows, width)
