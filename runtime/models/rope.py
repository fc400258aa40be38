"""Rotary positions: each pair of a head's numbers is turned by an angle that grows as text does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.compute.torch_device import CPU
from runtime.models.spec import Llama3Scaling, RopeSpec

# Consecutive rows of a step, by run: the position of the first token, and how many there are.
Places = tuple[tuple[int, int], ...]
Angles = tuple[Tensor, Tensor]  # cosines and signed sines [S, D]

ROPE_GROWTH_TOKENS = 512  # rows added to a rope's tables at once


class Rope:
    """The angles of one spec: tables that grow with the longest conversation so far."""

    def __init__(
        self,
        spec: RopeSpec,
        head_dim: int,
        divisors: Tensor | None = None,
        device: torch.device = CPU,
    ) -> None:
        """`divisors` [D/2] is what a file says each frequency is to be divided by; the tables are
        made by the processor, alike everywhere, and kept on `device`.
        """
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / (spec.base**exponents) / spec.factor  # [D/2]
        if spec.scaling is not None:
            frequencies = _scaled(frequencies, spec.scaling)
        self._frequencies = frequencies if divisors is None else frequencies / divisors
        self._cos = self._sin = torch.empty(0, head_dim, device=device)
        self._last: tuple[Places, Angles] | None = None

    def angles(self, places: Places) -> Angles:
        """For the rows of a step; made once, though every layer asks."""
        last = self._last
        if last is None or last[0] != places:
            end = max(position + count for position, count in places)
            if end > self._cos.shape[0]:
                self._grow(end)
            rows = [slice(position, position + count) for position, count in places]
            cos = [self._cos[one] for one in rows]
            sin = [self._sin[one] for one in rows]
            joined = (cos[0], sin[0]) if len(rows) == 1 else (torch.cat(cos), torch.cat(sin))
            self._last = last = (places, joined)
        return last[1]

    def _grow(self, end: int) -> None:
        rows = -(-end // ROPE_GROWTH_TOKENS) * ROPE_GROWTH_TOKENS
        with torch.inference_mode(False):  # or a later training step could not use the tables
            angles = torch.arange(rows, dtype=torch.float32)[:, None] * self._frequencies
            cos, sin = angles.cos(), angles.sin()  # [rows, D/2]
            where = self._cos.device
            self._cos = torch.cat((cos, cos), dim=1).to(where)
            self._sin = torch.cat((-sin, sin), dim=1).to(where)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """x [.., S, D], each pair (i, i + D/2) turned by its row's angles."""
    cos, sin = angles
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _scaled(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """A pair is slowed wholly at `low` turns in the first context, less and less up to `high`."""
    turns = scaling.context * frequencies / (2 * math.pi)  # [D/2]
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / scaling.factor)
