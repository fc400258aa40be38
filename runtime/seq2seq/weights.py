"""An encoder's checkpoint, with or without a decoder: checked when opened, read part by part.

As with a decoder's (`runtime.weights`), knowing the model needs no torch: it comes with the first
thing that is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.ids import ModelId
from mesh.tensor_frame import DType
from planner.plan import Span
from planner.profile import Cuttable, LayerProfile, ModelProfile, Stacks
from runtime.compute.precision import Precision, resolved
from runtime.cut import (
    WHOLE,
    Cut,
    Extent,
    KeptOf,
    head_kept,
    seq2seq_extent,
    seq2seq_kept,
    seq2seq_share,
    vocab_rows,
)
from runtime.formats import excerpt
from runtime.formats.gguf import FileRange
from runtime.formats.renamed_file import RenamedFile
from runtime.formats.safetensors_folder import folder_name
from runtime.formats.tensor_check import check_tensors
from runtime.formats.tensor_file import TensorFile
from runtime.models.encoders import encoder_family_of
from runtime.models.metadata import Metadata
from runtime.models.seq2seq_names import Places, Seq2SeqFamily
from runtime.models.seq2seq_spec import MelEntrySpec, Output, Seq2SeqSpec, TokenEntrySpec
from runtime.purpose import Purpose
from runtime.seq2seq.decoding import Decoding, read_decoding
from runtime.seq2seq.pooling import DEFAULT_POOLING, HEAD_POOLING, Pooling
from runtime.traffic import Source, Traffic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from runtime.models.encoder_ends import Exit
    from runtime.seq2seq.loading import Loader
    from runtime.seq2seq.section import Ending, Section
    from runtime.text.json_tokenizer import JsonTokenizer
    from runtime.weighing import Weigher


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

    def __init__(self, folder: ModelFolder, precision: Precision = Precision.AUTO) -> None:
        """Raises BadModelFile, also for a missing, superfluous or wrong-shaped tensor, and
        UnsupportedModel."""
        self.file = folder.file
        self.path = folder.path
        self.name = folder_name(folder.path)
        self.precision = _resolved(precision)
        config = Metadata(folder.config)
        self.family: Seq2SeqFamily = encoder_family_of(config)
        self._file = RenamedFile(folder.file, self.family.known_as)
        known = frozenset(self._file.tensors)
        self.spec: Seq2SeqSpec = self.family.read_spec(config, known)
        self._layers = [self.family.layer(self.spec, index) for index in range(self.spec.layers)]
        self._ends = self.family.ends(self.spec, known)
        self._check()
        self._folder_pooling = folder.pooling
        self.decoding: Decoding | None = (
            None
            if self.spec.decoder is None
            else read_decoding(folder.generation, folder.config, self.spec)
        )
        self.model_id: ModelId = folder.file.fingerprint()

    def at(self, precision: Precision) -> Seq2SeqCheckpoint:
        """The same model, its weights to be held with this precision."""
        precision = _resolved(precision)
        if precision is self.precision:
            return self
        other = copy(self)
        other.precision = precision
        return other

    @property
    def purpose(self) -> Purpose:
        if self.spec.decoder is None:
            has_classes = self.spec.exit.output is Output.CLASSES
            return Purpose.LABELS if has_classes else Purpose.EMBEDDINGS
        hears = isinstance(self.spec.source, MelEntrySpec)
        return Purpose.SPEECH_TO_TEXT if hears else Purpose.TEXT_TO_TEXT

    @property
    def pooling(self) -> Pooling:
        """How an encoder's hidden states become one; any piece of the model says it."""
        if self.spec.exit.output is Output.CLASSES:
            return HEAD_POOLING
        return self._folder_pooling or DEFAULT_POOLING

    @property
    def traffic(self) -> Traffic:
        """What steps of this model look like on the wire."""
        spec, entry = self.spec, self.spec.source
        source = Source(DType.INT32, 1, entry.context)
        if isinstance(entry, MelEntrySpec):
            source = Source(DType.FLOAT32, entry.mels, 2 * entry.context)
        width = 0
        if spec.decoder is None:
            width = spec.exit.outputs if self._has_exit else spec.hidden_size
        return Traffic(spec.hidden_size, source, spec.encoder.layers, width)

    def profile(self, device: torch.device | None = None) -> ModelProfile:
        """What the planner needs, from the headers alone; bytes as held in memory, by a processor
        unless another torch device is named.

        What stands in front of a stack's first layer or behind the encoder's last goes with it.
        """
        from runtime.compute.torch_device import CPU
        from runtime.weighing import Weigher, with_cuts

        spec, weigher = self.spec, Weigher(self._file, self.precision, device or CPU)
        cuts = [self._cuttable(weigher, index) for index in range(spec.layers)]
        layers = [self._layer_profile(index, cut) for index, cut in enumerate(cuts)]
        placed, kinds = with_cuts(layers, cuts)
        return ModelProfile(
            model=self.model_id,
            name=self.name,
            layers=placed,
            head_bytes=weigher.bytes_of(self._exit_places),
            hidden_size=spec.hidden_size,
            vocabulary=spec.vocabulary,
            context=spec.context,
            cuts=kinds,
            stacks=Stacks.ENCODER if spec.decoder is None else Stacks.BOTH,
        )

    def share_spec(self, cut: Cut) -> Seq2SeqSpec:
        """What a share of each layer looks like. Raises PlanError."""
        return seq2seq_share(self.spec, cut)

    def extent_of(self, index: int, cut: Cut) -> Extent:
        """What a share has of layer `index`. Raises PlanError."""
        return seq2seq_extent(self.spec, index, cut)

    def tokenizer(self) -> JsonTokenizer:
        """Raises ModelNotFound when there is none, BadModelFile for one that is damaged."""
        from runtime.text.json_tokenizer import JsonTokenizer  # most devices of a plan never ask

        return JsonTokenizer.open(self.path)

    # --- parts ------------------------------------------------------------------------------------

    def load_layer(
        self, index: int, device: torch.device | None = None, cut: Cut = WHOLE
    ) -> Section:
        """Layer `index`, counted through both stacks, or a share of it, and what goes with it, for
        the processor unless another torch device is named; reads no more. Raises PlanError for a
        share of nothing.
        """
        return self._loader.on(device).section(index, self.precision, cut)

    def load_head(self, device: torch.device | None = None, vocab: Span | None = None) -> Ending:
        """What stands behind the last layer; of a vocabulary, some rows. Raises PlanError."""
        from runtime.seq2seq.section import Ending

        return Ending(self.load_exit(device, vocab) if self._has_exit else None, self.pooling)

    def load_exit(
        self, device: torch.device | None = None, vocab: Span | None = None
    ) -> Exit | None:
        """The checkpoint's own head; None where hidden states are all there is."""
        if self.spec.exit.output is Output.HIDDEN:
            return None
        return self._loader.on(device).exit(self.precision, vocab)

    def words(self, token_ids: Tensor) -> Tensor:
        """[S] -> [S, hidden], read row by row from the file, unscaled.

        Raises GenerationFailed for an id outside the vocabulary.
        """
        return self._loader.words(token_ids)

    def ranges_of(self, span: Span, cut: Cut = WHOLE) -> list[FileRange]:
        """The bytes that a device with these layers, or these shares of them, reads, the headers
        among them; they may overlap. A copy with holes for all others opens as the very same
        model. Raises PlanError.
        """
        ranges = self._file.header_ranges()
        for index in range(span.first, span.last):
            kept = seq2seq_kept(self.spec, index, self.extent_of(index, cut))
            ranges += self._ranges(self._around(index), kept)
        if self._has_exit and cut.has_head(ends=span.last == self.spec.layers):
            rows = vocab_rows(cut.vocab, self.spec.exit.outputs)
            ranges += self._ranges(self._exit_places, head_kept(rows))
        if self._reads_words(span):
            ranges.append(self._file.range_of(self._ends.words))
        return ranges

    def close(self) -> None:
        """Lets go of the files; what was loaded stays."""
        self._file.close()

    # --- places -----------------------------------------------------------------------------------

    @cached_property
    def _loader(self) -> Loader:
        from runtime.seq2seq.loading import Loader

        return Loader(self._file, self.spec, self._layers, self._ends)

    @property
    def _has_exit(self) -> bool:
        """A head for masked words is left alone: such an encoder is used for its embeddings."""
        return self.spec.exit.output in (Output.CLASSES, Output.LANGUAGE)

    @property
    def _exit_places(self) -> Places:
        return self._ends.exit if self._has_exit else ()

    def _around(self, index: int) -> Places:
        """Layer `index`, and what stands in front of it or behind it."""
        depth, ends = self.spec.encoder.layers, self._ends
        before = ends.source if index == 0 else ends.target if index == depth else ()
        behind = ends.middle if index == depth - 1 else ()
        return (*before, *self._layers[index], *behind)

    def _cuttable(self, weigher: Weigher, index: int) -> Cuttable:
        from runtime.weighing import Sizes

        stack, spec = self.spec.stack(index), self.spec
        sizes = Sizes(stack.heads, stack.heads, stack.head_dim, stack.ffn_size)
        return weigher.cuttable(
            self._around(index), sizes, lambda extent: seq2seq_kept(spec, index, extent)
        )

    def _layer_profile(self, index: int, cut: Cuttable) -> LayerProfile:
        """A decoder layer keeps keys and values of the target's tokens and of the source's rows. A
        text has at most the context's tokens; a sound takes the same room whatever is said of it.
        """
        spec = self.spec
        row_bytes = spec.kv_bytes_per_token(index)
        is_text = isinstance(spec.source, TokenEntrySpec)
        return LayerProfile(
            weight_bytes=cut.whole_bytes,
            kv_bytes_per_token=2 * row_bytes if is_text else row_bytes,
            window=None,
            session_bytes=0 if is_text else spec.source.context * row_bytes,
        )

    def _ranges(self, places: Places, kept: KeptOf) -> list[FileRange]:
        return [
            part
            for place in places
            for part in excerpt.ranges_of(self._file, place, kept.get(place.parameter, excerpt.ALL))
        ]

    def _reads_words(self, span: Span) -> bool:
        reads = 0 in span and isinstance(self.spec.source, TokenEntrySpec)
        return reads or self.spec.encoder.layers in span

    def _check(self) -> None:
        spec, ends = self.spec, self._ends
        layers = [self._around(index) for index in range(spec.layers)]
        expected = {place.tensor: place.shape for part in (*layers, ends.exit) for place in part}
        expected[ends.words] = (spec.vocabulary, spec.hidden_size)
        check_tensors(self._file, expected, self.family.ignored)


def _resolved(precision: Precision) -> Precision:
    """These models are small, and embeddings are held against those of others: `auto` is exact."""
    return Precision.FP32 if precision is Precision.AUTO else resolved(precision)
