"""WAV files as people upload them: heard as they sound, or refused in words."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import BadPrompt
from runtime.seq2seq.mel import SAMPLE_RATE
from runtime.seq2seq.resample import resampled
from runtime.seq2seq.wav import MAX_RATE, MIN_RATE, read_wav


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)


def wav(
    pcm: torch.Tensor, rate: int = SAMPLE_RATE, *, size: int | None = None, extra: bytes = b""
) -> bytes:
    """[N] or [N, 2] samples from -1 to 1. `size` is what the file says of its sound's bytes."""
    channels = pcm.shape[1] if pcm.dim() == 2 else 1
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    body = (pcm * 32767).round().to(torch.int16).numpy().tobytes()
    data = struct.pack("<4sI", b"data", len(body) if size is None else size) + body
    content = b"WAVE" + chunk(b"fmt ", head) + extra + data
    return struct.pack("<4sI", b"RIFF", len(content)) + content


def tone(hz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_101, 192_000])
@pytest.mark.parametrize("hz", [100.0, 440.0, 3_000.0])
def test_a_tone_stays_that_tone_at_any_rate(rate: int, hz: float) -> None:
    found = resampled(tone(hz, rate), rate)
    expected = tone(hz, SAMPLE_RATE)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(1000, 7000)  # at the ends there is nothing on one side
    assert (found[inner] - expected[inner]).abs().max() < 0.005


@pytest.mark.parametrize("rate", [44_100, 96_000])
def test_what_is_too_high_to_be_kept_does_not_come_back_as_noise(rate: int) -> None:
    found = resampled(tone(12_000, rate), rate)
    assert found[1000:7000].abs().max() < 0.005


@given(count=st.integers(0, 5_000), rate=st.integers(MIN_RATE, MAX_RATE))
@settings(max_examples=40, deadline=None)
def test_any_length_at_any_rate(count: int, rate: int) -> None:
    found = resampled(torch.full((count,), 0.5), rate)
    assert len(found) == -(-count * SAMPLE_RATE // rate)
    assert (found.abs() < 0.7).all()  # and finite


def test_samples_at_sixteen_kilohertz_are_taken_as_they_are() -> None:
    pcm = tone(440, SAMPLE_RATE)
    assert (read_wav(wav(pcm)) - pcm).abs().max() < 1e-4


def test_two_channels_are_mixed_and_other_chunks_are_passed_over() -> None:
    left, right = tone(440, SAMPLE_RATE), tone(600, SAMPLE_RATE)
    data = wav(torch.stack([left, right], dim=1), extra=chunk(b"LIST", b"abc"))
    assert (read_wav(data) - (left + right) / 2).abs().max() < 1e-4


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_a_file_written_into_a_pipe_does_not_know_its_length(size: int) -> None:
    pcm = tone(440, SAMPLE_RATE)
    assert len(read_wav(wav(pcm, size=size))) == len(pcm)


def test_no_sound_at_all() -> None:
    assert len(read_wav(wav(torch.zeros(0)))) == 0


@pytest.mark.parametrize("cut", [0, 4, 11, 12, 20, 30, 43, 44, 100])
def test_a_file_that_breaks_off(cut: int) -> None:
    with pytest.raises(BadPrompt):
        read_wav(wav(tone(440, SAMPLE_RATE))[:cut])


@given(data=st.binary(max_size=200), at=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_or_is_some_sound(data: bytes, at: int) -> None:
    whole = bytearray(wav(torch.zeros(50)))
    whole[at : at + len(data)] = data
    with suppress(BadPrompt):
        assert torch.isfinite(read_wav(bytes(whole))).all()
