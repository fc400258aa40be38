"""A checkpoint's tensors as torch computes with them: layers, the head, rows of the embedding."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from planner.plan import Span
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU
from runtime.cut import (
    WHOLE,
    Cut,
    decoder_extent,
    decoder_kept,
    decoder_share,
    head_kept,
    vocab_rows,
)
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
    """Of one open file, whose tensors have been checked against the places given here.

    Modules are made on the torch device that is to compute with them, and filled there.
    """

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
        self._device = CPU
        self._ropes: dict[RopeSpec, Rope] = {}
        self._others: dict[torch.device, Loader] = {}

    def on(self, device: torch.device | None) -> Loader:
        """The same for another torch device; the layers there share their tables. None: this."""
        if device is None or device == self._device:
            return self
        if device not in self._others:
            other = self._others[device] = copy(self)
            other._device, other._ropes, other._others = device, {}, {}
        return self._others[device]

    def layer(self, index: int, precision: Precision, cut: Cut = WHOLE) -> Block:
        rope, spec = self._rope(self._spec.layers[index].rope), self._spec
        with self._device:
            block = Block(decoder_share(spec, cut), index, rope)
        kept = decoder_kept(spec, decoder_extent(spec, cut))
        fill(block, self._file, self._layers[index], precision, kept)
        return block

    def head(self, precision: Precision, vocab: Span | None = None) -> Head:
        rows = vocab_rows(vocab, self._spec.vocabulary)
        with self._device:
            head = Head(replace(self._spec, vocabulary=len(rows)))
        fill(head, self._file, self._head, precision, head_kept(rows))
        return head

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
            self._ropes[spec] = Rope(spec, self._spec.head_dim, divisors, self._device)
        return None if spec is None else self._ropes[spec]

    def _rows(self, tensor: str, row_ids: Tensor, expected: str) -> Tensor:
        info = self._file.tensors[tensor]
        try:
            return dequantise_rows(self._file.raw(tensor), info.type, info.shape, row_ids)
        except IndexError as error:
            raise GenerationFailed(f"{expected}: {error}") from None
