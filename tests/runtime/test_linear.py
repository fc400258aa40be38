"""Linear maps in every form that weights are held in, against the plain product of fp32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.plan import Span
from runtime.compute import compiled, kernels, linear, team
from runtime.compute.linear import Columns, Linear, Part, column_unit, held_bytes
from runtime.compute.matrix import as_codes
from runtime.compute.precision import Precision
from runtime.formats.gguf import GGMLType
from runtime.formats.quantize import dequantise

QUANTISED = [kind for kind in GGMLType if kind.block_weights > 1]
FLOATS = [kind for kind in GGMLType if kind.block_weights == 1]


def part(kind: GGMLType, rows: int, columns: int, seed: int) -> tuple[Part, torch.Tensor]:
    """Random bytes whose scales are small numbers, and what they mean."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, rows * columns // kind.block_weights * kind.block_bytes, np.uint8)
    if kind in FLOATS:
        weights = torch.from_numpy(random.standard_normal((rows, columns)).astype(np.float32))
        stored = {
            GGMLType.F32: weights,
            GGMLType.F16: weights.half(),
            GGMLType.BF16: weights.bfloat16().view(torch.int16),
        }[kind]
        raw = np.frombuffer(stored.numpy().tobytes(), np.uint8)
    else:
        blocks = raw.reshape(-1, kind.block_bytes)
        places = {GGMLType.Q6_K: (208,), GGMLType.Q4_K: (0, 2), GGMLType.Q5_K: (0, 2)}
        for place in places.get(kind, (0,)):
            scales = random.uniform(-0.1, 0.1, len(blocks)).astype("<f2")
            blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return Part(raw, kind, rows), dequantise(raw, kind, (rows, columns))


def filled(parts: list[Part], columns: int, precision: Precision) -> Linear:
    made = Linear(sum(each.rows for each in parts), columns)
    made.fill(parts, precision)
    return made


@pytest.fixture(params=["compiled", "torch alone"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch alone":
        monkeypatch.setattr(compiled, "available", lambda: False)
        monkeypatch.setattr(kernels, "reads_blocks", lambda: False)
    elif not compiled.available():
        pytest.skip("llvmlite is not installed, so there are no compiled loops")


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 17, 40])
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_file_loses_nothing(kind: GGMLType, count: int) -> None:
    columns = 2 * max(32, kind.block_weights)
    (first, weights), (second, others) = part(kind, 5, columns, 1), part(kind, 4, columns, 2)
    made = filled([first, second], columns, Precision.INT8)
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(3))
    expected = x.double() @ torch.cat([weights, others]).double().T
    assert (made(x) - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.usefixtures("_way")
def test_parts_of_different_formats_stand_one_below_the_other() -> None:
    kinds = [GGMLType.Q5_0, GGMLType.Q8_0, GGMLType.Q6_K, GGMLType.Q4_K, GGMLType.F16]
    made_of = [part(kind, 3 + index, 256, index) for index, kind in enumerate(kinds)]
    made = filled([each for each, _ in made_of], 256, Precision.INT8)
    weights = torch.cat([weights for _, weights in made_of])
    for count in (1, 4, 33):
        x = torch.randn(count, 256, generator=torch.Generator().manual_seed(count))
        assert torch.allclose(made(x), x @ weights.T, rtol=1e-2, atol=0.3), "rounded: F16 alone"
        exact = made(x)[:, : 3 + 4 + 5 + 6]
        assert torch.allclose(exact, x @ weights[: 3 + 4 + 5 + 6].T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.INT8])
def test_floats_are_kept_as_the_precision_says(kind: GGMLType, precision: Precision) -> None:
    stored, weights = part(kind, 96, 64, 5)
    made = filled([stored], 64, precision)
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    error = (made(x) - x @ weights.T).norm() / (x @ weights.T).norm()
    assert error <= {Precision.FP32: 1e-6, Precision.BF16: 4e-3, Precision.INT8: 8e-3}[precision]


@given(
    rows=st.integers(1, 70),
    groups=st.integers(1, 5),
    count=st.integers(1, 16),
    kind=st.sampled_from([GGMLType.Q8_0, GGMLType.Q5_0, GGMLType.Q4_0, GGMLType.F32]),
)
@settings(deadline=None, max_examples=60)
def test_a_row_does_not_depend_on_those_beside_it(
    rows: int, groups: int, count: int, kind: GGMLType
) -> None:
    """Else a conversation's tokens would depend on who shares its step."""
    stored, _ = part(kind, rows, 32 * groups, rows)
    made = filled([stored], 32 * groups, Precision.INT8)
    x = torch.randn(count, 32 * groups, generator=torch.Generator().manual_seed(count))
    together = made(x)
    for index in range(count):
        assert torch.equal(made(x[index : index + 1])[0], together[index])


@pytest.fixture
def _team_of_three() -> Iterator[None]:
    threads = torch.get_num_threads()
    team.assemble(3)
    yield
    team.assemble(threads)


@pytest.mark.usefixtures("_team_of_three")
def test_a_team_computes_what_one_thread_does() -> None:
    if team.team() is None:
        pytest.skip("llvmlite is not installed, so there is no team")
    stored, weights = part(GGMLType.Q8_0, 1031, 256, 9)
    made = filled([stored], 256, Precision.INT8)
    for count in (1, 2, 5):
        x = torch.randn(count, 256, generator=torch.Generator().manual_seed(count))
        found = made(x)
        assert torch.allclose(found, x @ weights.T, rtol=1e-4, atol=1e-3)
        for _ in range(300):  # helpers come late, early and not at all
            assert torch.equal(made(x), found)


def test_a_large_map_is_written_out_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SCRATCH_WEIGHTS", 64 * 10)
    for precision in (Precision.INT8, Precision.BF16):
        stored, weights = part(GGMLType.Q8_0, 33, 64, 4)
        x = torch.randn(30, 64, generator=torch.Generator().manual_seed(4))
        found, expected = filled([stored], 64, precision)(x), x @ weights.T
        assert (found - expected).norm() <= 4e-3 * expected.norm()


def test_what_is_held_is_what_was_promised() -> None:
    for kind in GGMLType:
        stored, _ = part(kind, 8, 256, 1)
        for precision in (Precision.FP32, Precision.BF16, Precision.INT8):
            made = filled([stored], 256, precision)
            held = sum(
                each.nbytes
                for matrix in made.matrices
                for each in (matrix.data, matrix.scales, matrix.minima)
                if each is not None
            ) + (0 if made.weight is None else made.weight.nbytes)
            assert held == held_bytes(8, 256, kind, precision)


def test_rows_that_fall_into_no_whole_groups_stay_fp32() -> None:
    stored, weights = part(GGMLType.F32, 7, 30, 1)
    made = filled([stored], 30, Precision.INT8)
    x = torch.randn(2, 30)
    assert torch.equal(made(x), torch.nn.functional.linear(x, weights))
    assert held_bytes(7, 30, GGMLType.F32, Precision.INT8) == 7 * 30 * 4


def test_rounding_keeps_zeros_and_the_largest_weight() -> None:
    weights = torch.zeros(2, 64)
    weights[0, 3], weights[1, 40] = -5.0, 2.0
    raw = np.frombuffer(weights.numpy().tobytes(), np.uint8)
    assert torch.allclose(as_codes(raw, GGMLType.F32, 2, 64).floats(), weights)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.INT8])
@pytest.mark.parametrize("kind", [*QUANTISED, GGMLType.F32])
def test_columns_of_whole_blocks_of_which_some_have_no_input(
    kind: GGMLType, precision: Precision
) -> None:
    unit = max(kind.block_weights, column_unit(1024, kind, precision))
    brought = Span(unit, 3 * unit)
    used = Span(brought.first + unit // 3, brought.last - unit // 4)
    stored, _ = part(kind, 6, len(brought), 7)
    whole, some = filled([stored], len(brought), precision), Linear(6, len(used))
    some.fill([stored], precision, Columns(1024, used, brought))
    for count in (1, 3, 40):
        x = torch.randn(count, len(used), generator=torch.Generator().manual_seed(count))
        padded = torch.zeros(count, len(brought))
        padded[:, used.first - brought.first : used.last - brought.first] = x
        expected = whole(padded)
        assert (some(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_share_of_a_map_that_stays_fp32_stays_fp32_too() -> None:
    """Though its own columns would fall into whole groups."""
    stored, _ = part(GGMLType.F32, 3, 32, 1)
    made = Linear(3, 32)
    made.fill([stored], Precision.INT8, Columns(40, Span(8, 40), Span(8, 40)))
    assert made.weight is not None
    assert made.weight.dtype is torch.float32
