"""What the pointwise loops are compiled for: kinds of gates, layouts of heads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Gate(StrEnum):
    """What a gate's numbers go through: x times a sigmoid, of x or nearly so."""

    GELU_TANH = "gelu_tanh"
    SILU = "silu"


@dataclass(frozen=True, slots=True)
class Heads:
    """How a row of queries, keys and values is laid out, and what becomes of it."""

    queries: int
    keys: int  # as many values
    dim: int
    normed: bool
    turned: bool
