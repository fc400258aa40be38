"""An encoder's tensors as torch computes with them: sections, the head, rows of words."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from mesh.errors import GenerationFailed
from planner.plan import Span
from runtime.compute.precision import Precision
from runtime.compute.torch_device import CPU
from runtime.cut import (
    WHOLE,
    Cut,
    KeptOf,
    head_kept,
    seq2seq_extent,
    seq2seq_kept,
    seq2seq_share,
    vocab_rows,
)
from runtime.formats.filling import EVERYTHING, fill
from runtime.formats.quantize import dequantise_rows
from runtime.formats.tensor_file import TensorFile
from runtime.models.decoder_block import DecoderLayer
from runtime.models.encoder_block import EncoderLayer, Norm
from runtime.models.encoder_ends import Exit, MelEntry, TokenEntry
from runtime.models.seq2seq_names import EndPlaces, Places
from runtime.models.seq2seq_spec import MelEntrySpec, Seq2SeqSpec
from runtime.seq2seq.section import Layer, Section

M = TypeVar("M", bound=nn.Module)


class Loader:
    """Of one open file, whose tensors have been checked against the places given here.

    Modules are made on the torch device that is to compute with them, and filled there.
    """

    def __init__(
        self, file: TensorFile, spec: Seq2SeqSpec, layers: list[Places], ends: EndPlaces
    ) -> None:
        self._file = file
        self._spec = spec
        self._layers = layers
        self._ends = ends
        self._device = CPU

    def on(self, device: torch.device | None) -> Loader:
        """The same for another torch device. None: this one."""
        if device is None or device == self._device:
            return self
        other = copy(self)
        other._device = device
        return other

    def section(self, index: int, precision: Precision, cut: Cut = WHOLE) -> Section:
        depth = self._spec.encoder.layers
        return Section(
            self._layer(index, precision, cut),
            source=self._source(precision) if index == 0 else None,
            middle=self._middle(precision) if index == depth - 1 else None,
            target=self._target(precision) if index == depth else None,
        )

    def exit(self, precision: Precision, vocab: Span | None = None) -> Exit:
        rows = vocab_rows(vocab, self._spec.exit.outputs)
        spec = replace(self._spec, exit=replace(self._spec.exit, outputs=len(rows)))
        return self._filled(lambda: Exit(spec), self._ends.exit, precision, head_kept(rows))

    def words(self, token_ids: Tensor) -> Tensor:
        """[S] -> [S, hidden], read row by row from the file, unscaled. Raises GenerationFailed."""
        name = self._ends.words
        info = self._file.tensors[name]
        try:
            return dequantise_rows(self._file.raw(name), info.type, info.shape, token_ids)
        except IndexError as error:
            raise GenerationFailed(
                f"token ids lie between 0 and {self._spec.vocabulary - 1}: {error}"
            ) from None

    def _layer(self, index: int, precision: Precision, cut: Cut) -> Layer:
        kind: type[Layer] = DecoderLayer if self._spec.is_decoder(index) else EncoderLayer
        spec = seq2seq_share(self._spec, cut)
        kept = seq2seq_kept(self._spec, index, seq2seq_extent(self._spec, index, cut))
        return self._filled(lambda: kind(spec), self._layers[index], precision, kept)

    def _source(self, precision: Precision) -> TokenEntry | MelEntry:
        entry, places = self._spec.source, self._ends.source
        if isinstance(entry, MelEntrySpec):
            return self._filled(lambda: MelEntry(self._spec, entry), places, precision)
        return self._filled(lambda: TokenEntry(self._spec, entry), places, precision)

    def _middle(self, precision: Precision) -> Norm | None:
        places = self._ends.middle
        return self._filled(lambda: Norm.of(self._spec), places, precision) if places else None

    def _target(self, precision: Precision) -> TokenEntry:
        entry = self._spec.target
        assert entry is not None, "only a model with a decoder has a target"
        return self._filled(lambda: TokenEntry(self._spec, entry), self._ends.target, precision)

    def _filled(
        self,
        make: Callable[[], M],
        places: Places,
        precision: Precision,
        kept: KeptOf = EVERYTHING,
    ) -> M:
        with self._device:
            module = make()
        fill(module, self._file, places, precision, kept)
        return module
