"""Weights in fp32 in the order in which oneDNN multiplies them.

A plain product lays the weights out anew each time. That is nothing beside many rows, and as much
as the product itself beside a device's share of them: a layer of BERT-large took 0.64 to 0.78 of
the time with 71 rows, 0.57 with 36, 0.94 with 284, and 1.1 of it with a single one (one thread,
AVX-512).
"""

from __future__ import annotations

import platform
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

# Elsewhere torch's oneDNN stands on other libraries, and nobody has measured it.
_MACHINES: Final = ("x86_64", "AMD64")


def can_pack() -> bool:
    """Whether this torch and this processor have the order, and what multiplies in it."""
    operations = torch.ops.mkldnn
    return (
        platform.machine() in _MACHINES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(operations, "_reorder_linear_weight")
        and hasattr(operations, "_linear_pointwise")
    )


def pack(weight: Tensor) -> Tensor:
    """[rows, columns] fp32 on the processor, in as much memory of its own; where that cannot be
    done, the same tensor.
    """
    if not can_pack():
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., columns] @ weight.T + bias: [.., rows], with weights packed or not, of x's type."""
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    multiplied: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return multiplied
