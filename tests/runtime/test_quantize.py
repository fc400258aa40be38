"""Dequantised weights are bit for bit those of the `gguf` package."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.formats.gguf import GGMLType
from runtime.formats.quantize import CHUNK_WEIGHTS, dequantise, dequantise_rows
from runtime.weights import Checkpoint


def random_raw(ggml_type: GGMLType, rows: int, blocks: int, seed: int) -> np.ndarray:
    size = rows * blocks * ggml_type.block_bytes
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def oracle(raw: np.ndarray, ggml_type: GGMLType, shape: tuple[int, ...]) -> np.ndarray:
    by_row = raw.reshape(*shape[:-1], -1)
    with np.errstate(all="ignore"):  # random bytes make infinite scales
        values: np.ndarray = gguf.dequantize(by_row, gguf.GGMLQuantizationType(int(ggml_type)))
    return values.reshape(shape)


def assert_same(ours: torch.Tensor, theirs: np.ndarray) -> None:
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.numpy(), theirs, equal_nan=True)


@pytest.mark.parametrize("ggml_type", GGMLType)
@given(rows=st.integers(1, 9), blocks=st.integers(1, 5), seed=st.integers(0, 1 << 32))
@settings(deadline=None, max_examples=30)
def test_equals_the_gguf_package(ggml_type: GGMLType, rows: int, blocks: int, seed: int) -> None:
    raw = random_raw(ggml_type, rows, blocks, seed)
    shape = (rows, blocks * ggml_type.block_weights)
    assert_same(dequantise(raw, ggml_type, shape), oracle(raw, ggml_type, shape))


@pytest.mark.parametrize("ggml_type", GGMLType)
def test_more_than_one_chunk(ggml_type: GGMLType) -> None:
    blocks = 2 * CHUNK_WEIGHTS // ggml_type.block_weights + 3
    raw = random_raw(ggml_type, 1, blocks, seed=1)
    shape = (blocks * ggml_type.block_weights,)
    assert_same(dequantise(raw, ggml_type, shape), oracle(raw, ggml_type, shape))


@pytest.mark.parametrize("ggml_type", GGMLType)
@given(row_ids=st.lists(st.integers(0, 6), max_size=12))
@settings(deadline=None, max_examples=20)
def test_rows_are_rows_of_the_whole(ggml_type: GGMLType, row_ids: list[int]) -> None:
    raw, shape = random_raw(ggml_type, 7, 2, seed=2), (7, 2 * ggml_type.block_weights)
    ids = torch.tensor(row_ids, dtype=torch.int32)
    rows = dequantise_rows(raw, ggml_type, shape, ids)
    assert_same(rows, dequantise(raw, ggml_type, shape)[ids.long()].numpy())


@pytest.mark.parametrize("row_id", [-1, 7])
def test_a_row_that_is_not_there(row_id: int) -> None:
    raw = random_raw(GGMLType.Q8_0, 7, 1, seed=3)
    with pytest.raises(IndexError, match="of 7 rows"):
        dequantise_rows(raw, GGMLType.Q8_0, (7, 32), torch.tensor([row_id]))


def test_writes_into_part_of_a_larger_tensor() -> None:
    raw = random_raw(GGMLType.Q8_0, 2, 1, seed=4)
    fused = torch.zeros(5, 32)
    dequantise(raw, GGMLType.Q8_0, (2, 32), fused[1:3])
    assert_same(fused[1:3], oracle(raw, GGMLType.Q8_0, (2, 32)))
    assert not fused[0].any()
    assert not fused[3:].any()


@pytest.mark.parametrize("ggml_type", GGMLType)
def test_scratch_stays_small(ggml_type: GGMLType) -> None:
    weights = 16 * CHUNK_WEIGHTS
    raw = random_raw(ggml_type, 1, weights // ggml_type.block_weights, seed=5)
    out = torch.empty(weights)
    tracemalloc.start()
    dequantise(raw, ggml_type, (weights,), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_real_tensors(gemma: Checkpoint) -> None:
    """One of each type in the file, and some rows of the embedding."""
    infos = gemma.file.tensors
    by_type = {info.type: name for name, info in infos.items() if name != "token_embd.weight"}
    assert len(by_type) == 5
    for ggml_type, name in by_type.items():
        raw, shape = gemma.file.raw(name), infos[name].shape
        assert_same(dequantise(raw, ggml_type, shape), oracle(raw, ggml_type, shape))
    info = infos["token_embd.weight"]
    ids = torch.tensor([0, 1, 107, 262_143])
    raw = gemma.file.raw(info.name)
    rows = oracle(raw.reshape(info.shape[0], -1)[ids.numpy()].ravel(), info.type, (4, 640))
    assert_same(dequantise_rows(raw, info.type, info.shape, ids), rows)
