"""Tensors of a file into the parameters of a module, in whatever order the file keeps them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from torch import Tensor, nn

from mesh.errors import UnsupportedModel
from runtime.compute.linear import Linear, Part, held_bytes
from runtime.compute.precision import Precision
from runtime.formats.gguf import Bytes, TensorInfo
from runtime.formats.quantize import dequantise
from runtime.formats.tensor_file import TensorFile
from runtime.models.spec import FP32_BYTES, Storage, TensorPlace


def fill(
    module: nn.Module, file: TensorFile, places: Sequence[TensorPlace], precision: Precision
) -> None:
    """Linear maps keep their rows as `precision` says; what is small is fp32."""
    parts: dict[str, list[Part]] = {}
    for place in sorted(places, key=lambda place: place.first_row):
        info, target = file.tensors[place.tensor], attrgetter(place.parameter)(module)
        if isinstance(target, Linear):
            raw = file.copy(place.tensor)
            part = Part(_in_rows(raw, info, place), info.type, place.rows)
            parts.setdefault(place.parameter, []).append(part)
        else:
            rows = slice(place.first_row, place.first_row + place.rows)
            target[rows] = _values(file.raw(place.tensor), info, place)
    for name, rows_of in parts.items():
        attrgetter(name)(module).fill(rows_of, precision)


def held_bytes_of(file: TensorFile, places: Sequence[TensorPlace], precision: Precision) -> int:
    """What `fill` makes of these tensors: bytes in memory, from the header alone."""
    total = 0
    for place in places:
        if place.is_map:
            columns = math.prod(place.shape) // place.rows
            total += held_bytes(place.rows, columns, file.tensors[place.tensor].type, precision)
        else:
            total += math.prod(place.shape) * FP32_BYTES
    return total


def _in_rows(raw: Bytes, info: TensorInfo, place: TensorPlace) -> Bytes:
    """The bytes of the parameter's rows, in its own order; not copied where that is the file's."""
    match place.storage:
        case Storage.TRANSPOSED:
            if info.type.block_weights != 1:
                raise UnsupportedModel(
                    f"tensor {info.name} is transposed and quantised as {info.type.name}, whose "
                    "blocks lie along the wrong side; take the model in F32, F16 or BF16"
                )
            numbers = raw.view(np.dtype(f"<u{info.type.block_bytes}")).reshape(info.shape)
            return np.ascontiguousarray(numbers.T).reshape(-1).view(np.uint8)
        case Storage.PAIRED:
            pairs = raw.reshape(-1, place.head_dim // 2, 2, raw.size // place.rows)
            return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)
        case Storage.PLAIN | Storage.LESS_ONE:
            return raw


def _values(raw: Bytes, info: TensorInfo, place: TensorPlace) -> Tensor:
    """The parameter's values in fp32."""
    values = dequantise(raw, info.type, info.shape)
    match place.storage:
        case Storage.PLAIN:
            return values
        case Storage.LESS_ONE:
            return values.add_(1.0)
        case Storage.PAIRED:
            return values.view(-1, place.head_dim // 2, 2).transpose(1, 2).reshape(-1)
        case Storage.TRANSPOSED:
            return values.T
