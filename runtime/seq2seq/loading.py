"""An encoder's tensors as torch computes with them: sections, the head, rows of words."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from mesh.errors import GenerationFailed
from runtime.compute.precision import Precision
from runtime.formats.filling import fill
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
    """Of one open file, whose tensors have been checked against the places given here."""

    def __init__(
        self, file: TensorFile, spec: Seq2SeqSpec, layers: list[Places], ends: EndPlaces
    ) -> None:
        self._file = file
        self._spec = spec
        self._layers = layers
        self._ends = ends

    def section(self, index: int, precision: Precision) -> Section:
        depth = self._spec.encoder.layers
        return Section(
            self._layer(index, precision),
            source=self._source(precision) if index == 0 else None,
            middle=self._middle(precision) if index == depth - 1 else None,
            target=self._target(precision) if index == depth else None,
        )

    def exit(self, precision: Precision) -> Exit:
        return self._filled(Exit(self._spec), self._ends.exit, precision)

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

    def _layer(self, index: int, precision: Precision) -> Layer:
        made: Layer = EncoderLayer(self._spec)
        if self._spec.is_decoder(index):
            made = DecoderLayer(self._spec)
        return self._filled(made, self._layers[index], precision)

    def _source(self, precision: Precision) -> TokenEntry | MelEntry:
        entry = self._spec.source
        made: TokenEntry | MelEntry
        if isinstance(entry, MelEntrySpec):
            made = MelEntry(self._spec, entry)
        else:
            made = TokenEntry(self._spec, entry)
        return self._filled(made, self._ends.source, precision)

    def _middle(self, precision: Precision) -> Norm | None:
        places = self._ends.middle
        return self._filled(Norm.of(self._spec), places, precision) if places else None

    def _target(self, precision: Precision) -> TokenEntry:
        assert self._spec.target is not None, "only a model with a decoder has a target"
        return self._filled(TokenEntry(self._spec, self._spec.target), self._ends.target, precision)

    def _filled(self, module: M, places: Places, precision: Precision) -> M:
        fill(module, self._file, places, precision)
        return module
