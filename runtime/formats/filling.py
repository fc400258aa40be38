"""Tensors of a file into the parameters of a module, in whatever order the file keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Final

import torch
from torch import Tensor, nn

from planner.plan import Span
from runtime.compute.linear import Columns, Linear, Part, column_unit, held_bytes
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU
from runtime.cut import Kept, KeptOf
from runtime.formats.excerpt import ALL, columns_of, read, rows_of
from runtime.formats.gguf import Bytes, GGMLType, TensorInfo
from runtime.formats.quantize import dequantise
from runtime.formats.tensor_file import TensorFile
from runtime.models.spec import FP32_BYTES, Storage, TensorPlace

EVERYTHING: Final[Mapping[str, Kept]] = {}


def fill(
    module: nn.Module,
    file: TensorFile,
    places: Sequence[TensorPlace],
    precision: Precision,
    kept: KeptOf = EVERYTHING,
) -> None:
    """Linear maps keep their rows as `precision` says; what is small is fp32. Of a share's module
    the parameters are only what is `kept`.
    """
    parts: dict[str, list[Part]] = {}
    columns: dict[str, Columns] = {}
    for place in sorted(places, key=lambda place: place.first_row):
        of_it = kept.get(place.parameter, ALL)
        rows, info = rows_of(place, of_it), file.tensors[place.tensor]
        if not rows:
            continue
        target = attrgetter(place.parameter)(module)
        if isinstance(target, Linear):
            taken = _columns(place, of_it, info.type, precision, target.device)
            raw = read(file, place, [span for span, _ in rows], taken.brought)
            part = Part(raw, info.type, sum(len(span) for span, _ in rows))
            parts.setdefault(place.parameter, []).append(part)
            columns[place.parameter] = taken
        else:
            values = _values(file.raw(place.tensor), info, place)
            if of_it.columns is not None:
                values = values[:, of_it.columns.first : of_it.columns.last]
            for span, first in rows:
                target[first : first + len(span)] = values[span.first : span.last]
    for name, rows_of_it in parts.items():
        attrgetter(name)(module).fill(rows_of_it, precision, columns[name])


def held_bytes_of(
    file: TensorFile,
    places: Sequence[TensorPlace],
    precision: Precision,
    device: torch.device = CPU,
    kept: KeptOf = EVERYTHING,
) -> int:
    """What `fill` makes of these tensors: bytes in the device's memory, from the header alone."""
    total = 0
    for place in places:
        of_it = kept.get(place.parameter, ALL)
        rows = sum(len(span) for span, _ in rows_of(place, of_it))
        whole = columns_of(place)
        if place.is_map:
            ggml_type = file.tensors[place.tensor].type
            unit = column_unit(whole, ggml_type, precision, device)
            held = len(_widened(Span(0, whole) if of_it.columns is None else of_it.columns, unit))
            total += held_bytes(rows, held, ggml_type, precision, device, whole=whole)
        else:
            total += rows * (whole if of_it.columns is None else len(of_it.columns)) * FP32_BYTES
    return total


def _columns(
    place: TensorPlace,
    kept: Kept,
    ggml_type: GGMLType,
    precision: Precision,
    device: torch.device,
) -> Columns:
    """What is used of a map's columns, and what has to be brought for it."""
    whole = columns_of(place)
    used = Span(0, whole) if kept.columns is None else kept.columns
    unit = column_unit(whole, ggml_type, precision, device)
    return Columns(whole, used, _widened(used, math.lcm(unit, ggml_type.block_weights)))


def _widened(span: Span, unit: int) -> Span:
    """The units that it touches."""
    return Span(span.first // unit * unit, -(-span.last // unit) * unit)


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
