"""Numbers of a peer are numbers, or go nowhere: one that is none spoils all that it meets."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from mesh.errors import NotFinite

MAX_NOT_FINITE: Final = 2  # once may be a bit that fell over; a device that does it again is wrong


def check_finite(rows: Tensor) -> None:
    """Raises NotFinite for floating-point rows with a NaN or an infinity among them."""
    # One sum tells nearly always, in a fraction of the time: what is not finite stays so in it.
    if math.isfinite(float(rows.sum(dtype=torch.float32))) or torch.isfinite(rows).all():
        return
    raise NotFinite("numbers that are not finite; its weights are damaged, or it computes wrongly")
