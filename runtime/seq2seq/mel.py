"""Sound as Whisper hears it: a log-mel spectrogram, a hundred frames a second."""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

SAMPLE_RATE: Final = 16_000
WINDOW_SAMPLES: Final = 400  # of one transform
HOP_SAMPLES: Final = 160
FRAMES_PER_S: Final = SAMPLE_RATE // HOP_SAMPLES
FLOOR: Final = 1e-10
RANGE: Final = 8.0  # decades below the loudest that are told apart
# Slaney's scale: linear up to 1 kHz, 27 steps for each factor of 6.4 above.
HZ_PER_MEL: Final = 200 / 3
BEND_HZ: Final = 1000.0
BEND_MEL: Final = BEND_HZ / HZ_PER_MEL
STEPS: Final = 27


def log_mel(pcm: Tensor, window_s: float, mels: int) -> Tensor:
    """[N] samples at 16 kHz from -1 to 1 -> [100 * window_s, mels].

    What is shorter than the window is followed by silence; what is longer is cut off.
    """
    samples = round(window_s * SAMPLE_RATE)
    pcm = torch.nn.functional.pad(pcm[:samples], (0, max(0, samples - pcm.shape[0])))
    window = torch.hann_window(WINDOW_SAMPLES)
    waves = torch.stft(pcm, WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    power = waves[:, :-1].abs() ** 2  # [201, frames]
    logs = (mel_filters(mels) @ power).clamp(min=FLOOR).log10()  # [mels, frames]
    logs = logs.clamp(min=logs.max().item() - RANGE)
    return ((logs + 4) / 4).T.contiguous()


@functools.lru_cache(maxsize=4)
def mel_filters(mels: int) -> Tensor:
    """[mels, 201]: triangles over the transform's bins, each of the same area."""
    with torch.inference_mode(False):
        top = _mel(torch.tensor(SAMPLE_RATE / 2, dtype=torch.float64))
        corners = _hz(torch.linspace(0, top.item(), mels + 2, dtype=torch.float64))  # [mels + 2]
        bins = torch.linspace(0, SAMPLE_RATE / 2, WINDOW_SAMPLES // 2 + 1, dtype=torch.float64)
        left, middle, right = (corners[i : i + mels, None] for i in range(3))  # [mels, 1]
        rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
        triangles = torch.minimum(rising, falling).clamp(min=0)
        return (triangles * 2 / (right - left)).float()


def _mel(hz: Tensor) -> Tensor:
    bent = BEND_MEL + torch.log(hz / BEND_HZ) * STEPS / torch.log(torch.tensor(6.4).double())
    return torch.where(hz < BEND_HZ, hz / HZ_PER_MEL, bent)


def _hz(mel: Tensor) -> Tensor:
    bent = BEND_HZ * torch.exp(torch.log(torch.tensor(6.4).double()) * (mel - BEND_MEL) / STEPS)
    return torch.where(mel < BEND_MEL, mel * HZ_PER_MEL, bent)
