"""Weights as a test looks at them, in whatever order they are held."""

from __future__ import annotations

from torch import Tensor


def plain(weight: Tensor) -> Tensor:
    """[rows, columns], not packed."""
    return weight.to_dense() if weight.is_mkldnn else weight
