"""An encoder's checkpoint, with or without a decoder: checked when opened, read part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from mesh.errors import GenerationFailed
from mesh.ids import ModelId
from planner.plan import Span
from planner.profile import LayerProfile, ModelProfile
from runtime.compute.precision import Precision, resolved
from runtime.formats.filling import check_tensors, fill, held_bytes_of
from runtime.formats.gguf import FileRange
from runtime.formats.quantize import dequantise_rows
from runtime.formats.renamed_file import RenamedFile
from runtime.formats.tensor_file import TensorFile
from runtime.models.decoder_block import DecoderLayer
from runtime.models.encoder_block import EncoderLayer, Norm
from runtime.models.encoder_ends import Exit, MelEntry, TokenEntry
from runtime.models.encoders import encoder_family_of
from runtime.models.metadata import Metadata
from runtime.models.seq2seq_names import Places, Seq2SeqFamily
from runtime.models.seq2seq_spec import MelEntrySpec, Output, Seq2SeqSpec, TokenEntrySpec
from runtime.seq2seq.decoding import Decoding, read_decoding
from runtime.seq2seq.pooling import Pooling

Layer = EncoderLayer | DecoderLayer
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder holds of a model, whoever wrote it."""

    path: Path
    file: TensorFile
    config: Mapping[str, Any]  # config.json
    generation: Mapping[str, Any]  # generation_config.json, or nothing
    pooling: Pooling | None  # of a sentence encoder


class Seq2SeqCheckpoint:
    """An open model, checked against its family; weights are read when asked for."""

    def __init__(self, folder: ModelFolder, precision: Precision = Precision.FP32) -> None:
        """Raises BadModelFile, also for a missing, superfluous or wrong-shaped tensor, and
        UnsupportedModel."""
        self.folder = folder
        self.model_id: ModelId = folder.file.fingerprint()
        self.name = folder.path.name
        self.precision = resolved(precision)
        config = Metadata(folder.config)
        self.family: Seq2SeqFamily = encoder_family_of(config)
        self._file = RenamedFile(folder.file, self.family.known_as)
        known = frozenset(self._file.tensors)
        self.spec: Seq2SeqSpec = self.family.read_spec(config, known)
        self._ends = self.family.ends(self.spec, known)
        self._check()
        decoder = self.spec.decoder
        self.decoding: Decoding | None = (
            None if decoder is None else read_decoding(folder.generation, folder.config, self.spec)
        )

    @property
    def pooling(self) -> Pooling | None:
        """How the last stage makes one embedding of its hidden states, where it does."""
        return self.folder.pooling if self.spec.exit.output is Output.HIDDEN else None

    def profile(self) -> ModelProfile:
        """What the planner needs, from the headers alone; bytes as held in memory.

        What stands in front of a stack's first layer or behind the encoder's last goes with it.
        """
        spec = self.spec
        layers = tuple(
            LayerProfile(
                weight_bytes=self._held_bytes(self._around(index)),
                kv_bytes_per_token=spec.kv_bytes_per_token(index),
                window=None,
            )
            for index in range(spec.layers)
        )
        return ModelProfile(
            model=self.model_id,
            name=self.name,
            layers=layers,
            head_bytes=self._held_bytes(self._ends.exit),
            hidden_size=spec.hidden_size,
            vocabulary=spec.vocabulary,
            context=spec.context,
        )

    # --- parts ------------------------------------------------------------------------------------

    def load_layer(self, index: int) -> Layer:
        """Layer `index`, counted through both stacks; reads that layer's tensors only."""
        places = self.family.layer(self.spec, index)
        if self.spec.is_decoder(index):
            return self._filled(DecoderLayer(self.spec), places)
        return self._filled(EncoderLayer(self.spec), places)

    def load_source(self) -> TokenEntry | MelEntry:
        """What makes hidden states of the source."""
        entry = self.spec.source
        if isinstance(entry, MelEntrySpec):
            return self._filled(MelEntry(self.spec, entry), self._ends.source)
        return self._filled(TokenEntry(self.spec, entry), self._ends.source)

    def load_middle(self) -> Norm | None:
        """The norm behind the encoder's last layer, where there is one."""
        return self._filled(Norm.of(self.spec), self._ends.middle) if self._ends.middle else None

    def load_target(self) -> TokenEntry:
        """What makes hidden states of the tokens that the decoder has said."""
        assert self.spec.target is not None, "only a model with a decoder has a target"
        return self._filled(TokenEntry(self.spec, self.spec.target), self._ends.target)

    def load_exit(self) -> Exit | None:
        """The head behind the last layer; None where hidden states are all there is."""
        if self.spec.exit.output is Output.HIDDEN:
            return None
        return self._filled(Exit(self.spec), self._ends.exit)

    def words(self, token_ids: Tensor) -> Tensor:
        """[S] -> [S, hidden], read row by row from the file, unscaled.

        Raises GenerationFailed for an id outside the vocabulary.
        """
        name = self._ends.words
        info = self._file.tensors[name]
        try:
            return dequantise_rows(self._file.raw(name), info.type, info.shape, token_ids)
        except IndexError as error:
            raise GenerationFailed(
                f"token ids lie between 0 and {self.spec.vocabulary - 1}: {error}"
            ) from None

    def close(self) -> None:
        """Lets go of the files; what was loaded stays."""
        self._file.close()

    def ranges_of(self, span: Span) -> list[FileRange]:
        """The bytes that a stage with these layers reads, the headers among them; they may
        overlap. A copy with holes for all others opens as the very same model."""
        places = [place for index in range(span.first, span.last) for place in self._around(index)]
        if span.last == self.spec.layers:
            places += self._ends.exit
        names = {place.tensor for place in places}
        if self._reads_words(span):
            names.add(self._ends.words)
        ranges = [self._file.range_of(name) for name in sorted(names)]
        return [*self._file.header_ranges(), *ranges]

    # --- filling ----------------------------------------------------------------------------------

    def _filled(self, module: M, places: Places) -> M:
        fill(module, self._file, places, self.precision)
        return module

    def _around(self, index: int) -> Places:
        """Layer `index`, and what stands in front of it or behind it."""
        depth, ends = self.spec.encoder.layers, self._ends
        before = ends.source if index == 0 else ends.target if index == depth else ()
        return (
            *before,
            *self.family.layer(self.spec, index),
            *(ends.middle if index == depth - 1 else ()),
        )

    def _reads_words(self, span: Span) -> bool:
        reads = 0 in span and isinstance(self.spec.source, TokenEntrySpec)
        return reads or self.spec.encoder.layers in span

    def _held_bytes(self, places: Places) -> int:
        return held_bytes_of(self._file, places, self.precision)

    def _check(self) -> None:
        spec, ends = self.spec, self._ends
        layers = [self._around(index) for index in range(spec.layers)]
        expected = {place.tensor: place.shape for part in (*layers, ends.exit) for place in part}
        expected[ends.words] = (spec.vocabulary, spec.hidden_size)
        check_tensors(self._file, expected, self.family.ignored)
