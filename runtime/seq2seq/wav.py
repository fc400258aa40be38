"""A WAV file as somebody uploads it: 16-bit PCM to samples at 16 kHz. Nothing of it is trusted."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mesh.errors import BadPrompt
from runtime.seq2seq.resample import resampled

PCM: Final = 1
EXTENSIBLE: Final = 0xFFFE  # what it is stands in the first two bytes of its sub-format
BITS: Final = 16
MIN_RATE, MAX_RATE = 4_000, 192_000
# A program that writes to a pipe does not know the length yet, and says one that no file has.
UNKNOWN_BYTES: Final = 0x7FFF_0000


@dataclass(frozen=True, slots=True)
class _Format:
    channels: int
    rate: int


def read_wav(data: bytes) -> Tensor:
    """[N] samples at 16 kHz from -1 to 1; two channels are mixed.

    Raises BadPrompt, which says what was expected, for anything but a whole WAV file of 16-bit PCM.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadPrompt("the file is no WAV file; send sound as WAV with 16-bit PCM samples")
    found: _Format | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"data":
            if found is None:
                raise BadPrompt("the WAV file has samples before it says what they are")
            if len(body) < size < UNKNOWN_BYTES:
                raise BadPrompt(
                    f"the WAV file breaks off: it has {len(body)} of {size} bytes of sound; "
                    "send all of it"
                )
            return resampled(_mixed(body, found.channels), found.rate)
        if name == b"fmt ":
            found = _format(body)
        at += 8 + size + size % 2  # chunks begin at even bytes
    raise BadPrompt("the WAV file breaks off before its sound; send all of it")


def _format(body: bytes) -> _Format:
    if len(body) < 16:
        raise BadPrompt("the WAV file breaks off before its sound; send all of it")
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if kind == EXTENSIBLE and len(body) >= 26:
        kind = struct.unpack_from("<H", body, 24)[0]
    if kind != PCM or bits != BITS:
        raise BadPrompt(
            f"the WAV file holds samples of {bits} bits in format {kind}; send 16-bit PCM, which "
            "is format 1"
        )
    if channels not in (1, 2) or not MIN_RATE <= rate <= MAX_RATE:
        raise BadPrompt(
            f"the WAV file has {channels} channels of {rate} Hz; send 1 or 2 channels of "
            f"{MIN_RATE} to {MAX_RATE} Hz"
        )
    return _Format(channels, rate)


def _mixed(body: bytes, channels: int) -> Tensor:
    whole = len(body) - len(body) % (2 * channels)
    if not whole:
        return torch.zeros(0)
    samples = torch.frombuffer(bytearray(body[:whole]), dtype=torch.int16)
    return samples.view(-1, channels).float().mean(dim=1) / 32768
