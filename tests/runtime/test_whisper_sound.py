"""From sound to spectrogram, and long recordings cut into windows: no weights needed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import BadModelFile, ModelNotFound, PotluckError, UnsupportedModel
from runtime.formats.ctranslate2 import CTranslate2File
from runtime.formats.gguf import GGMLType
from runtime.seq2seq.listener import looping, pieces
from runtime.seq2seq.mel import SAMPLE_RATE, log_mel
from tests.runtime.ctranslate2_writer import text, variable


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.3, 2.0, 31.0])
def test_hears_what_transformers_hears(mels: int, seconds: float) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    times = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = torch.randn(times.shape, generator=torch.Generator().manual_seed(1))
    pcm = 0.3 * torch.sin(2 * torch.pi * (200 + 400 * times) * times) + 0.01 * noise
    theirs = extractor(pcm.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    ours = log_mel(pcm, 30.0, mels)
    assert ours.shape == (3000, mels)
    assert (ours - theirs[0].T).abs().max() < 1e-4


@given(
    seconds=st.floats(0, 40),
    window_s=st.floats(1, 30),
    seed=st.integers(0, 5),
)
@settings(max_examples=40, deadline=None)
def test_a_recording_is_cut_without_losing_a_word(
    seconds: float, window_s: float, seed: int
) -> None:
    pcm = torch.randn(round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(seed))
    parts = list(pieces(pcm, window_s))
    assert all(0 < part.shape[0] <= round(window_s * SAMPLE_RATE) for part in parts)
    whole = torch.cat([torch.empty(0), *parts])
    assert torch.equal(whole, pcm[: whole.shape[0]])
    assert pcm.shape[0] - whole.shape[0] < SAMPLE_RATE // 10  # too short for a word


def test_a_recording_is_cut_where_it_is_quiet() -> None:
    pcm = torch.ones(12 * SAMPLE_RATE)
    pcm[8 * SAMPLE_RATE : 8 * SAMPLE_RATE + 3200] = 0
    first, second = pieces(pcm, 10.0)
    assert 8 * SAMPLE_RATE <= first.shape[0] <= 8 * SAMPLE_RATE + 3200
    assert second.shape[0] == pcm.shape[0] - first.shape[0]


@pytest.mark.parametrize(
    ("said", "period"),
    [
        ([], 0),
        ([7, 7, 7, 7], 0),  # "no, no, no, no"
        ([1, 2, 3, 4] * 2, 0),
        ([9, *[1, 2, 3, 4] * 3], 4),
        ([*[1, 2, 3, 4, 5] * 3, 6], 0),
    ],
)
def test_what_comes_round_and_round(said: list[int], period: int) -> None:
    assert looping(said) == period


VALUES = np.arange(6, dtype=np.float16).reshape(2, 3)
HEAD = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<I", 3)
WHOLE = (
    HEAD
    + struct.pack("<I", 2)
    + variable("decoder/num_heads", np.array(6, dtype=np.int16), 2)
    + variable("encoder/w", VALUES, 4)
    + struct.pack("<I", 0)
)


def test_a_converted_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(WHOLE)
    file = CTranslate2File.open(tmp_path / "model.bin")
    (info,) = file.tensors.values()
    assert (file.spec, info.name, info.shape, info.type) == (
        "WhisperSpec",
        "encoder/w",
        (2, 3),
        GGMLType.F16,
    )
    assert file.raw("encoder/w").tobytes() == VALUES.tobytes()


@pytest.mark.parametrize("length", range(0, len(WHOLE) - 4))
def test_a_converted_model_that_ends_too_early(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.bin").write_bytes(WHOLE[:length])
    with pytest.raises(BadModelFile):
        CTranslate2File.open(tmp_path / "model.bin")


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_converted_model_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(WHOLE) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(damaged)
    try:
        file = CTranslate2File.open(path)
    except PotluckError:
        return
    for name, info in file.tensors.items():
        assert file.raw(name).size == info.size_bytes


def test_a_converted_model_in_bytes_is_not_ours(tmp_path: Path) -> None:
    quantised = np.zeros((2, 3), dtype=np.int8)
    body = struct.pack("<I", 1) + variable("encoder/w", quantised, 1)
    (tmp_path / "model.bin").write_bytes(HEAD + body)
    with pytest.raises(UnsupportedModel, match="take a model in float16"):
        CTranslate2File.open(tmp_path / "model.bin")


def test_a_path_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        CTranslate2File.open(tmp_path / "model.bin")
