"""A checkpoint: a file or folder as a model, from which layers, head and embedding are loaded.

Knowing a model (its name, size, tensors) needs no torch, which takes a second to import: it comes
with the first thing that is loaded.
"""

from __future__ import annotations

import re
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from planner.plan import Span
from planner.profile import LayerProfile, ModelProfile
from runtime.compute.precision import Precision, resolved
from runtime.cut import (
    WHOLE,
    Cut,
    Extent,
    KeptOf,
    decoder_extent,
    decoder_kept,
    decoder_share,
    head_kept,
    vocab_rows,
)
from runtime.formats import excerpt
from runtime.formats.gguf import FileRange, GGUFFile
from runtime.formats.safetensors_folder import SafetensorsFolder, folder_name
from runtime.formats.tensor_check import check_tensors
from runtime.models import folder_form, gguf_form
from runtime.models.family import Form
from runtime.models.names import Places, entry_places, head_places, layer_places
from runtime.purpose import Purpose
from runtime.traffic import Traffic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from runtime.compute.linear import Linear
    from runtime.loading import Loader
    from runtime.models.block import Block
    from runtime.models.head import Head
    from runtime.models.spec import DecoderSpec
    from runtime.text.tokenizer import Tokenizer


class Checkpoint:
    """An open model, checked against its family; weights are read when asked for."""

    def __init__(
        self, file: GGUFFile | SafetensorsFolder, form: Form, precision: Precision
    ) -> None:
        """Raises BadModelFile (also for a missing, superfluous or wrong-shaped tensor) or
        UnsupportedModel."""
        self.file = file
        self.precision = resolved(precision)
        self.path = file.path
        self.name = _name(file)
        entries = file.metadata if isinstance(file, GGUFFile) else file.config
        self.spec = form.read_spec(entries, frozenset(file.tensors))
        self._names = form.names.found_in(file.tensors)
        self._layers = [
            layer_places(self.spec, self._names, index) for index in range(len(self.spec.layers))
        ]
        self._head = head_places(self.spec, self._names)
        self._entry = entry_places(self.spec, self._names)
        divisors = self._names.rope_divisors
        self._divisors = file.tensors.get(f"{divisors}.weight") if divisors else None
        self._check()
        self.model_id = file.fingerprint()

    @classmethod
    def open(cls, path: Path, precision: Precision = Precision.AUTO) -> Checkpoint:
        """A GGUF file, or a folder as Hugging Face lays it out. Reads the headers only.

        Raises ModelNotFound, BadModelFile or UnsupportedModel.
        """
        if path.is_dir():
            folder = SafetensorsFolder.open(path)
            return cls(folder, folder_form(folder.config), precision)
        file = GGUFFile.open(path)
        return cls(file, gguf_form(file.metadata), precision)

    def at(self, precision: Precision) -> Checkpoint:
        """The same model, its weights to be held with this precision."""
        precision = resolved(precision)
        if precision is self.precision:
            return self
        other = copy(self)
        other.precision = precision
        return other

    @property
    def purpose(self) -> Purpose:
        return Purpose.TEXT

    @property
    def traffic(self) -> Traffic:
        """What steps of this model look like on the wire."""
        return Traffic(self.spec.hidden_size)

    def profile(self, device: torch.device | None = None) -> ModelProfile:
        """What the planner needs, from the header alone; bytes as held in memory, by a processor
        unless another torch device is named.
        """
        from runtime.compute.torch_device import CPU
        from runtime.weighing import Sizes, Weigher, with_cuts

        spec, weigher = self.spec, Weigher(self.file, self.precision, device or CPU)
        sizes = Sizes(spec.heads, spec.kv_heads, spec.head_dim, spec.ffn_size)
        cuts = [
            weigher.cuttable(places, sizes, lambda extent: decoder_kept(spec, extent))
            for places in self._layers
        ]
        layers = [
            LayerProfile(cut.whole_bytes, spec.kv_bytes_per_token, layer.window)
            for cut, layer in zip(cuts, spec.layers, strict=True)
        ]
        placed, kinds = with_cuts(layers, cuts)
        return ModelProfile(
            model=self.model_id,
            name=self.name,
            layers=placed,
            head_bytes=weigher.bytes_of(self._head),
            hidden_size=spec.hidden_size,
            vocabulary=spec.vocabulary,
            context=spec.context,
            cuts=kinds,
        )

    def share_spec(self, cut: Cut) -> DecoderSpec:
        """What a share of each layer looks like. Raises PlanError."""
        return decoder_share(self.spec, cut)

    def extent_of(self, index: int, cut: Cut) -> Extent:
        """What a share has of layer `index`. Raises PlanError."""
        return decoder_extent(self.spec, cut)

    def load_layer(self, index: int, device: torch.device | None = None, cut: Cut = WHOLE) -> Block:
        """Layer `index`, or a share of it, for the processor unless another torch device is named;
        reads the bytes of that alone. Raises PlanError for a share of nothing.
        """
        return self._loader.on(device).layer(index, self.precision, cut)

    def load_head(self, device: torch.device | None = None, vocab: Span | None = None) -> Head:
        """The final norm and the vocabulary head, or some of its rows. Raises PlanError."""
        return self._loader.on(device).head(self.precision, vocab)

    def head_rows(self, rows: int, device: torch.device | None = None) -> Linear:
        """The first rows of the vocabulary head alone, to measure with."""
        return self.load_head(device, Span(0, rows)).output

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Tokens [S] at positions [S] -> [S, hidden], read row by row from the file.

        Raises GenerationFailed for an id outside the vocabulary, or a position outside the context
        where positions are learned.
        """
        return self._loader.embed(token_ids, positions)

    def tokenizer(self) -> Tokenizer:
        """Made anew on each call, in a fraction of a second. Raises BadModelFile or
        UnsupportedModel."""
        from runtime.text.folder_tokenizer import folder_tokenizer  # most devices of a plan
        from runtime.text.tokenizer import Tokenizer  # never ask for one

        if isinstance(self.file, GGUFFile):
            return Tokenizer.from_gguf(self.file)
        return folder_tokenizer(self.file.path, self.file.config)

    def ranges_of(self, span: Span, cut: Cut = WHOLE) -> list[FileRange]:
        """The bytes that a device with these layers, or these shares of them, needs: the headers
        are among them, and they may overlap. The first layer's devices also embed, and those that
        have rows of the head come after the last. A copy with holes for all others opens as the
        very same model. Raises PlanError.
        """
        spec, file = self.spec, self.file
        of_layers = decoder_kept(spec, decoder_extent(spec, cut))
        ranges = file.header_ranges()
        for places in self._layers[span.first : span.last]:
            ranges += self._ranges(places, of_layers)
        if 0 in span:
            ranges += self._ranges(self._entry, {})
        if cut.has_head(ends=span.last == len(self._layers)):
            rows = vocab_rows(cut.vocab, spec.vocabulary)
            ranges += self._ranges(self._head, head_kept(rows))
        return ranges if self._divisors is None else [*ranges, file.range_of(self._divisors.name)]

    def close(self) -> None:
        """Lets go of the file; what was loaded stays."""
        self.file.close()

    @cached_property
    def _loader(self) -> Loader:
        from runtime.loading import Loader

        layers, head, entry = self._layers, self._head, self._entry
        return Loader(self.file, self.spec, layers, head, entry, self._divisors)

    def _ranges(self, places: Places, kept: KeptOf) -> list[FileRange]:
        return [
            part
            for place in places
            for part in excerpt.ranges_of(self.file, place, kept.get(place.parameter, excerpt.ALL))
        ]

    def _check(self) -> None:
        places = [place for part in (*self._layers, self._head, self._entry) for place in part]
        expected = {place.tensor: place.shape for place in places}
        if self._divisors is not None and any(layer.rope for layer in self.spec.layers):
            expected[self._divisors.name] = (self.spec.head_dim // 2,)
        ignored = self._names.ignored
        if self.spec.tied_head:  # some files hold the embedding a second time, under this name
            ignored += f"|^{re.escape(self._names.output)}\\.weight$"
        check_tensors(self.file, expected, ignored)


def _name(file: GGUFFile | SafetensorsFolder) -> str:
    """What the model is called: by its file, or as its folder is."""
    if isinstance(file, SafetensorsFolder):
        return folder_name(file.path)
    name = file.metadata.get("general.name")
    return name if isinstance(name, str) and name else file.path.stem
