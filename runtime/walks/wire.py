"""Numbers as they travel inside a stage: fp32, fp16, or 8 bits with a scale for each row."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mesh.errors import ProtocolError
from mesh.tensor_frame import DType
from planner.plan import Wire
from runtime.finite import check_finite

SCALE_BYTES: Final = 4  # fp32, behind the bytes of its row
_MOST_HALF: Final = torch.finfo(torch.float16).max
_TINY: Final = torch.finfo(torch.float32).tiny

DTYPES: Final = {Wire.FP32: DType.FLOAT32, Wire.FP16: DType.FLOAT16, Wire.INT8: DType.UINT8}


def pack(rows: Tensor, wire: Wire) -> tuple[DType, Tensor]:
    """[S, width] fp32 as it travels: a tensor of its own memory, unless it stays fp32.

    What is too large for fp16, or has no scale, travels as it is: the type says so.
    """
    if wire is Wire.FP16:
        # One pass over fp32: asking halves whether they are finite takes longer than all the rest.
        least, most = torch.aminmax(rows)
        if float(least) >= -_MOST_HALF and float(most) <= _MOST_HALF:
            return DType.FLOAT16, rows.half()
    if wire is Wire.INT8:
        least, most = torch.aminmax(rows, dim=1, keepdim=True)
        scales = torch.maximum(-least, most).div_(127.0)  # [S, 1]
        if torch.isfinite(scales).all():
            codes = (rows / scales.clamp_min(_TINY)).round_().to(torch.int8)  # [S, width]
            return DType.UINT8, torch.cat((codes.view(torch.uint8), scales.view(torch.uint8)), 1)
    return DType.FLOAT32, rows.contiguous()


def unpack(packed: Tensor) -> Tensor:
    """[S, width] fp32 of what `pack` made; where that is fp32, the very same memory."""
    if packed.dtype is torch.float16:
        return packed.float()
    if packed.dtype is torch.uint8:
        aligned = packed[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format)
        scales = aligned.view(torch.float32)  # [S, 1]
        return packed[:, :-SCALE_BYTES].view(torch.int8).float() * scales
    return packed


def check_packed(packed: Tensor) -> None:
    """Raises NotFinite for what would not be finite, unpacked; of 8 bits the scales tell."""
    if packed.dtype is torch.uint8:
        packed = packed[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format)
        packed = packed.view(torch.float32)
    check_finite(packed)


def numbers_in(dtype: DType, width: int) -> int:
    """How many numbers a row has that travels so wide. Raises ProtocolError for other types."""
    if dtype in (DType.FLOAT32, DType.FLOAT16):
        return width
    if dtype is DType.UINT8 and width > SCALE_BYTES:
        return width - SCALE_BYTES
    raise ProtocolError(f"rows [.., {width}] inside a stage do not travel as {dtype.name}")
