"""GGUF files: what is written is read, and a file that lies is refused, quickly and by name."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.errors import BadModelFile, ModelError, ModelNotFound, UnsupportedModel
from mesh.ids import ModelId
from runtime.formats.gguf import GGMLType, GGUFFile, fingerprint
from runtime.formats.gguf_reader import MAX_ARRAY_DEPTH
from tests.runtime.gguf_writer import f16, f32, string, tensor_info, typed, write_gguf

NUMBERS = np.arange(64, dtype=np.float32).reshape(2, 32)
METADATA = {
    "general.architecture": "gemma3",
    "a.count": 7,
    "a.ratio": 0.5,
    "a.flag": True,
    "a.texts": ["one", "zwei", "três", ""],
    "a.numbers": [1, 2, -3],
    "a.floats": [0.25, 1.0],
    "a.flags": [True, False],
    "a.nested": [[1, 2], [3]],
}


def header(version: int = 3, tensors: int = 0, metadata: int = 0, magic: bytes = b"GGUF") -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, metadata)


def opened(folder: Path, content: bytes) -> GGUFFile:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return GGUFFile.open(path)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_was_written(tmp_path: Path, version: int) -> None:
    tensors = {"b": f32(NUMBERS), "a": f16(NUMBERS[0])}
    file = GGUFFile.open(write_gguf(tmp_path / "m.gguf", METADATA, tensors, version=version))
    assert file.version == version
    assert {key: plain(value) for key, value in file.metadata.items()} == METADATA
    assert list(file.tensors) == ["b", "a"]
    assert file.tensors["b"].shape == (2, 32)
    assert file.tensors["b"].type is GGMLType.F32
    assert file.raw("b").view("<f4").tolist() == NUMBERS.ravel().tolist()
    assert file.raw("a").view("<f2").tolist() == NUMBERS[0].tolist()


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return list(value) if not isinstance(value, str | int | float) else value


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_array("a.texts", ["x", "y"])
    writer.add_float64("a.double", 0.1)
    writer.add_int64("a.negative", -5)
    writer.add_tensor("t", NUMBERS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile.open(tmp_path / "m.gguf")
    assert list(file.metadata["a.texts"]) == ["x", "y"]
    assert (file.metadata["a.double"], file.metadata["a.negative"]) == (0.1, -5)
    assert file.tensors["t"].shape == (2, 32)
    assert file.raw("t").view("<f4").tolist() == NUMBERS.ravel().tolist()


def test_block_sizes_are_ggmls() -> None:
    for ggml_type in GGMLType:
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(ggml_type))]
        assert sizes == (ggml_type.block_weights, ggml_type.block_bytes)


def test_views_outlive_the_file(tmp_path: Path) -> None:
    file = GGUFFile.open(write_gguf(tmp_path / "m.gguf", {}, {"t": f32(NUMBERS)}))
    raw = file.raw("t")
    file.close()
    assert raw.view("<f4")[-1] == 63
    assert not raw.flags.writeable


def test_opens_gemma_quickly(gemma_path: Path) -> None:
    times = []
    for _ in range(3):
        started_s = time.perf_counter()
        file = GGUFFile.open(gemma_path)
        times.append(time.perf_counter() - started_s)
    assert min(times) < 0.3
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 262_144
    assert len(file.tensors) == 236


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no file"):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(BadModelFile, match="cannot be read"):
        GGUFFile.open(tmp_path)
    with pytest.raises(BadModelFile, match="empty"):
        opened(tmp_path, b"")


LIES = {
    "begins with": header(magic=b"GGML"),
    "version": header(version=1),
    "big-endian": header(version=3 << 24),
    "bytes expected": header()[:-3],
    "claims 4611686018427387904 tensors": header(tensors=1 << 62),
    "claims 9999 metadata": header(metadata=9999) + bytes(64),
    "does not fit": header(metadata=1) + struct.pack("<Q", 1 << 60) + bytes(64),
    "unknown type 99": header(metadata=1) + string("a") + struct.pack("<I", 99) + bytes(64),
    "0 or 1 expected": header(metadata=1) + string("abcd") + struct.pack("<IB", 7, 2),
    "items in 'a'": header(metadata=1) + string("a") + struct.pack("<IIQ", 9, 6, 1 << 61),
    "items in 'b'": header(metadata=1) + string("b") + struct.pack("<IIQ", 9, 8, 1 << 40),
    "unknown type 77": header(metadata=1) + string("a") + struct.pack("<IIQ", 9, 77, 1),
    "the strings of": header(metadata=1)
    + string("a")
    + struct.pack("<IIQQ", 9, 8, 2, 1 << 63)
    + bytes(64),
    "not UTF-8": header(metadata=1) + string("a") + struct.pack("<IQ2s", 8, 2, b"\xc3("),
    "comes twice": header(metadata=2) + 2 * (string("a") + typed(1)),
    "metadata key of 0": header(metadata=1) + string("") + typed(1),
    "nests arrays": header(metadata=1)
    + string("a")
    + struct.pack("<I", 9)
    + MAX_ARRAY_DEPTH * struct.pack("<IQ", 9, 1)
    + struct.pack("<IQ", 4, 0),
    "power of two": header(metadata=1) + string("general.alignment") + typed(33),
    "0 dimensions": header(tensors=1) + tensor_info("t", [], 0, 0),
    "5 dimensions": header(tensors=1) + tensor_info("t", [1] * 5, 0, 0),
    "at least 1": header(tensors=1) + tensor_info("t", [4, 0], 0, 0),
    "a multiple of 32": header(tensors=1) + tensor_info("t", [31], GGMLType.Q8_0, 0),
    "truncated": header(tensors=1) + tensor_info("t", [32], 0, 0) + bytes(64),
    "ends at byte": header(tensors=1) + tensor_info("t", [1 << 63] * 4, 0, 0) + bytes(64),
    "start at a multiple": header(tensors=1) + tensor_info("t", [1], 0, 4) + bytes(64),
    "'t' comes twice": header(tensors=2)
    + tensor_info("t", [1], 0, 0)
    + tensor_info("t", [1], 0, 32)
    + bytes(128),
    "overlaps": header(tensors=2)
    + tensor_info("t", [16], 0, 0)
    + tensor_info("u", [16], 0, 32)
    + bytes(128),
}


@pytest.mark.parametrize("text", LIES)
def test_a_file_that_lies_is_refused(tmp_path: Path, text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadModelFile, match=text):
            opened(tmp_path, LIES[text])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_token_that_is_no_text_is_found_when_tokens_are_read(tmp_path: Path) -> None:
    content = header(metadata=1) + string("a") + struct.pack("<IIQQ2s", 9, 8, 1, 2, b"\xc3(")
    file = opened(tmp_path, content + bytes(64))
    with pytest.raises(BadModelFile, match="not UTF-8"):
        list(file.metadata["a"])


def test_an_unknown_tensor_type_is_named(tmp_path: Path) -> None:
    content = header(tensors=1) + tensor_info("blk.0.odd", [256], 16, 0) + bytes(256)
    with pytest.raises(UnsupportedModel, match="'blk.0.odd' is of ggml type 16; known .* Q6_K"):
        opened(tmp_path, content)


@given(cut=st.integers(0, 2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_cut_anywhere_it_is_refused(tmp_path: Path, cut: int) -> None:
    content = write_gguf(tmp_path / "w.gguf", METADATA, {"t": f32(NUMBERS)}).read_bytes()
    with pytest.raises(BadModelFile):
        opened(tmp_path, content[: min(cut, len(content) - 1)])


@given(at=st.integers(0, 500), value=st.integers(0, 255))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=1000, max_examples=300
)
def test_one_wrong_byte_is_an_error_of_ours_or_none(tmp_path: Path, at: int, value: int) -> None:
    content = bytearray(write_gguf(tmp_path / "w.gguf", METADATA, {"t": f32(NUMBERS)}).read_bytes())
    content[at % len(content)] = value
    try:
        file = opened(tmp_path, bytes(content))
        [plain(entry) for entry in file.metadata.values()]
        file.raw("t")
    except ModelError:
        pass


def test_the_fingerprint_tells_a_fine_tune_from_its_base(tmp_path: Path) -> None:
    def of(tensors: dict[str, Any], metadata: dict[str, Any] = METADATA) -> ModelId:
        return fingerprint(GGUFFile.open(write_gguf(tmp_path / "m.gguf", metadata, tensors)))

    base = of({"a": f32(NUMBERS), "b": f32(NUMBERS)})
    assert base == of({"a": f32(NUMBERS), "b": f32(NUMBERS)})
    assert base != of({"a": f32(NUMBERS), "b": f32(NUMBERS + 1)})
    assert base != of({"a": f32(NUMBERS), "b": f32(NUMBERS)}, {**METADATA, "a.count": 8})
    assert ModelId.parse(base) == base
