"""An excerpt of a tensor: the rows and columns that a share has of it, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from mesh.errors import UnsupportedModel
from planner.plan import Span
from runtime.cut import Kept
from runtime.formats.gguf import COPY_BYTES, Bytes, FileRange, TensorInfo
from runtime.formats.tensor_file import TensorFile
from runtime.models.spec import Storage, TensorPlace

ALL: Final = Kept()
Placed = tuple[Span, int]  # rows of a place, and the row of the share's parameter they begin at


def rows_of(place: TensorPlace, kept: Kept) -> list[Placed]:
    """The place's own rows that a share has, in order."""
    if kept.rows is None:
        return [(Span(0, place.rows), place.first_row)]
    found, start = [], 0
    for span in kept.rows:
        first = max(span.first, place.first_row)
        last = min(span.last, place.first_row + place.rows)
        if first < last:
            mine = Span(first - place.first_row, last - place.first_row)
            found.append((mine, start + first - span.first))
        start += len(span)
    return found


def columns_of(place: TensorPlace) -> int:
    """The columns of a place that fills rows of a Linear."""
    return math.prod(place.shape) // place.rows


def ranges_of(file: TensorFile, place: TensorPlace, kept: Kept) -> list[FileRange]:
    """The bytes that a share reads. Of what lies in one row of the file all is read, for that is
    less than what devices fetch at once; so are vectors.
    """
    rows = [span for span, _ in rows_of(place, kept)]
    whole = file.range_of(place.tensor)
    if not rows or (kept.columns is not None and not len(kept.columns)):
        return []
    if not place.is_map:
        return [whole]
    if place.storage is Storage.TRANSPOSED:
        rows = [Span(0, place.shape[0]) if kept.columns is None else kept.columns]
    row_bytes = whole.size_bytes // place.shape[0]
    return [
        FileRange(whole.file, whole.offset + span.first * row_bytes, len(span) * row_bytes)
        for span in rows
    ]


def read(file: TensorFile, place: TensorPlace, rows: Sequence[Span], columns: Span) -> Bytes:
    """The bytes of these rows, one after the other as the parameter has them. `columns` begin and
    end with blocks. Raises BadModelFile, UnsupportedModel.
    """
    info = file.tensors[place.tensor]
    if place.storage is Storage.TRANSPOSED:
        if info.type.block_weights != 1:
            raise UnsupportedModel(
                f"tensor {info.name} is transposed and quantised as {info.type.name}, whose "
                "blocks lie along the wrong side; take the model in F32, F16 or BF16"
            )
        raw = _rectangle(file, info, place.tensor, [columns], rows)
        numbers = raw.view(np.dtype(f"<u{info.type.block_bytes}")).reshape(len(columns), -1)
        return np.ascontiguousarray(numbers.T).reshape(-1).view(np.uint8)
    raw = _rectangle(file, info, place.tensor, rows, [columns])
    if place.storage is not Storage.PAIRED:
        return raw
    # Shares are cut between heads, so that the rows are those of whole ones.
    row_bytes = raw.size // sum(len(span) for span in rows)
    pairs = raw.reshape(-1, place.head_dim // 2, 2, row_bytes)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)


def _rectangle(
    file: TensorFile, info: TensorInfo, name: str, rows: Sequence[Span], columns: Sequence[Span]
) -> Bytes:
    """These rows and columns of a tensor as the file has it."""
    row_bytes = info.size_bytes // info.shape[0]
    weights, size = info.type.block_weights, info.type.block_bytes
    places = [slice(one.first // weights * size, one.last // weights * size) for one in columns]
    widths = [place.stop - place.start for place in places]
    if sum(widths) == row_bytes and len(rows) == 1:
        return file.copy(name, rows[0].first * row_bytes, len(rows[0]) * row_bytes)
    out = np.empty((sum(len(span) for span in rows), sum(widths)), np.uint8)
    step, done = max(1, COPY_BYTES // row_bytes), 0
    for span in rows:
        for first in range(span.first, span.last, step):
            count = min(step, span.last - first)
            some = file.copy(name, first * row_bytes, count * row_bytes).reshape(count, -1)
            np.concatenate([some[:, place] for place in places], 1, out[done : done + count])
            done += count
    return out.reshape(-1)
