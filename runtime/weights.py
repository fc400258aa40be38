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
from runtime.formats.gguf import FileRange, GGUFFile
from runtime.formats.safetensors_folder import SafetensorsFolder, folder_name
from runtime.formats.tensor_check import check_tensors
from runtime.models import folder_form, gguf_form
from runtime.models.family import Form
from runtime.models.names import Places, entry_places, head_places, layer_places
from runtime.purpose import Purpose
from runtime.traffic import Traffic

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.compute.linear import Linear
    from runtime.loading import Loader
    from runtime.models.block import Block
    from runtime.models.head import Head
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

    def profile(self) -> ModelProfile:
        """What the planner needs, from the header alone; bytes as held in memory."""
        spec = self.spec
        layers = tuple(
            LayerProfile(self._held_bytes(places), spec.kv_bytes_per_token, layer.window)
            for places, layer in zip(self._layers, spec.layers, strict=True)
        )
        return ModelProfile(
            model=self.model_id,
            name=self.name,
            layers=layers,
            head_bytes=self._held_bytes(self._head),
            hidden_size=spec.hidden_size,
            vocabulary=spec.vocabulary,
            context=spec.context,
        )

    def load_layer(self, index: int) -> Block:
        """Layer `index`; reads that layer's tensors only."""
        return self._loader.layer(index, self.precision)

    def load_head(self) -> Head:
        """The final norm and the vocabulary head."""
        return self._loader.head(self.precision)

    def head_rows(self, rows: int) -> Linear:
        """The first rows of the vocabulary head alone, to measure with."""
        return self._loader.head_rows(rows, self.precision)

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

    def tensors_of(self, span: Span) -> tuple[str, ...]:
        """The tensors that a stage with these layers reads: the first one's embed, the last one's
        are followed by the head."""
        places = [place for layer in self._layers[span.first : span.last] for place in layer]
        if span.first == 0:
            places += self._entry
        if span.last == len(self._layers):
            places += self._head
        names = dict.fromkeys(place.tensor for place in places)
        return tuple(names) if self._divisors is None else (*names, self._divisors.name)

    def ranges_of(self, span: Span) -> list[FileRange]:
        """The bytes that a device with these layers needs, the headers among them; they may
        overlap. A copy with holes for all others opens as the very same model."""
        tensors = [self.file.range_of(name) for name in self.tensors_of(span)]
        return [*self.file.header_ranges(), *tensors]

    def close(self) -> None:
        """Lets go of the file; what was loaded stays."""
        self.file.close()

    @cached_property
    def _loader(self) -> Loader:
        from runtime.loading import Loader

        layers, head, entry = self._layers, self._head, self._entry
        return Loader(self.file, self.spec, layers, head, entry, self._divisors)

    def _held_bytes(self, places: Places) -> int:
        from runtime.formats.filling import held_bytes_of

        return held_bytes_of(self.file, places, self.precision)

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
