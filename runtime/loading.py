"""A checkpoint's tensors as torch computes with them: layers, the head, rows of the embedding."""

from __future__ import annotations

from torch import Tensor

from mesh.errors import GenerationFailed
from runtime.compute.linear import Linear, Part
from runtime.compute.precision import Precision
from runtime.formats.filling import fill
from runtime.formats.gguf import TensorInfo
from runtime.formats.quantize import dequantise, dequantise_rows
from runtime.formats.tensor_file import TensorFile
from runtime.models.block import Block
from runtime.models.head import Head
from runtime.models.names import Places
from runtime.models.rope import Rope
from runtime.models.spec import DecoderSpec, RopeSpec


class Loader:
    """Of one open file, whose tensors have been checked against the places given here."""

    def __init__(
        self,
        file: TensorFile,
        spec: DecoderSpec,
        layers: list[Places],
        head: Places,
        entry: Places,
        divisors: TensorInfo | None,
    ) -> None:
        self._file = file
        self._spec = spec
        self._layers = layers
        self._head = head
        self._entry = entry
        self._divisors = divisors
        self._ropes: dict[RopeSpec, Rope] = {}

    def layer(self, index: int, precision: Precision) -> Block:
        block = Block(self._spec, index, self._rope(self._spec.layers[index].rope))
        fill(block, self._file, self._layers[index], precision)
        return block

    def head(self, precision: Precision) -> Head:
        head = Head(self._spec)
        fill(head, self._file, self._head, precision)
        return head

    def head_rows(self, rows: int, precision: Precision) -> Linear:
        place = self._head[-1]
        info = self._file.tensors[place.tensor]
        raw = self._file.raw(place.tensor)[: info.size_bytes // place.rows * rows].copy()
        part = Linear(rows, self._spec.hidden_size)
        part.fill([Part(raw, info.type, rows)], precision)
        return part

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        tokens, *learned = self._entry
        last = self._spec.vocabulary - 1
        rows = self._rows(tokens.tensor, token_ids, f"token ids lie between 0 and {last}")
        rows.mul_(self._spec.embedding_scale)
        for table in learned:
            assert self._spec.first_position is not None, "a table of positions has a first row"
            what = f"positions lie between 0 and {self._spec.context - 1}"
            rows += self._rows(table.tensor, positions + self._spec.first_position, what)
        return rows

    def _rope(self, spec: RopeSpec | None) -> Rope | None:
        if spec is not None and spec not in self._ropes:
            info, divisors = self._divisors, None
            if info is not None:
                divisors = dequantise(self._file.raw(info.name), info.type, info.shape)
            self._ropes[spec] = Rope(spec, self._spec.head_dim, divisors)
        return None if spec is None else self._ropes[spec]

    def _rows(self, tensor: str, row_ids: Tensor, expected: str) -> Tensor:
        info = self._file.tensors[tensor]
        try:
            return dequantise_rows(self._file.raw(tensor), info.type, info.shape, row_ids)
        except IndexError as error:
            raise GenerationFailed(f"{expected}: {error}") from None
