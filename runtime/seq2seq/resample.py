"""Another sample rate: each new sample is a windowed sinc over the old ones around it."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from runtime.seq2seq.mel import SAMPLE_RATE

CROSSINGS: Final = 16  # of the sinc with zero, on each side: its skirts are 60 dB down
ROLL_OFF: Final = 0.95  # of the lower rate's half: what is above would come back as noise
CHUNK: Final = 1 << 14  # new samples at once: with 192 kHz 24 MB of scratch


def resampled(pcm: Tensor, rate: int) -> Tensor:
    """[N] samples at `rate` -> [about N * 16000 / rate] at 16 kHz."""
    if rate == SAMPLE_RATE or not len(pcm):
        return pcm
    count = math.ceil(len(pcm) * SAMPLE_RATE / rate)
    cutoff = ROLL_OFF * min(1.0, SAMPLE_RATE / rate)  # of the old rate's half
    reach = math.ceil(CROSSINGS / cutoff)  # old samples on each side
    padded = torch.nn.functional.pad(pcm, (reach, reach + 1))
    offsets = torch.arange(-reach, reach + 1)  # [K]
    parts = []
    for first in range(0, count, CHUNK):
        new = torch.arange(first, min(first + CHUNK, count), dtype=torch.float64)
        place = new * rate / SAMPLE_RATE  # among the old samples
        middle = place.floor().long().clamp(max=len(pcm) - 1)
        distance = offsets - (place - middle)[:, None]  # [C, K]
        near = (distance / (reach + 1) * (math.pi / 2)).cos().clamp(min=0) ** 2  # Hann
        weights = torch.sinc(distance * cutoff) * cutoff * near
        around = padded[middle[:, None] + offsets + reach]  # [C, K]
        parts.append((around * weights).sum(dim=1).float())
    return torch.cat(parts)
