"""A checkpoint: a GGUF file as a model, from which layers, head and embedding are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mesh.errors import BadModelFile, GenerationFailed
from mesh.ids import ModelId
from planner.profile import LayerProfile, ModelProfile
from runtime.gguf import GGUFFile, fingerprint
from runtime.models import family_of
from runtime.models.block import Block, Rope
from runtime.models.head import Head
from runtime.models.spec import FP32_BYTES, DecoderSpec, Family, RopeSpec, TensorPlace
from runtime.quantize import dequantise, dequantise_rows

__all__ = ["Checkpoint", "Head"]

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
OUTPUT_NORM = "output_norm.weight"


class Checkpoint:
    """An open model file, checked against its family; weights are read when asked for."""

    def __init__(self, file: GGUFFile, family: Family, spec: DecoderSpec) -> None:
        self.file = file
        self.path = file.path
        self.family = family
        self.spec = spec
        self.model_id: ModelId = fingerprint(file)
        name = file.metadata.get("general.name")
        self.name = name if isinstance(name, str) and name else file.path.stem
        self._ropes: dict[RopeSpec, Rope] = {}
        _check_tensors(file, self._places())

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Reads the header only.

        Raises ModelNotFound, BadModelFile (also for a missing, superfluous or wrong-shaped tensor)
        or UnsupportedModel.
        """
        file = GGUFFile.open(path)
        family = family_of(file.metadata)
        return cls(file, family, family.read_spec(file.metadata, frozenset(file.tensors)))

    def profile(self) -> ModelProfile:
        """What the planner needs, from the header alone; bytes as held in memory, in fp32."""
        spec = self.spec
        layers = tuple(
            LayerProfile(
                weight_bytes=_fp32_bytes(self.family.layer_tensors(spec, index)),
                kv_bytes_per_token=spec.kv_bytes_per_token,
                window=layer.window,
            )
            for index, layer in enumerate(spec.layers)
        )
        return ModelProfile(
            model=self.model_id,
            name=self.name,
            layers=layers,
            head_bytes=_fp32_bytes(self._head_places()),
            hidden_size=spec.hidden_size,
            vocabulary=spec.vocabulary,
            context=spec.context,
        )

    def load_layer(self, index: int) -> Block:
        """Layer `index` in fp32; reads that layer's tensors only."""
        rope_spec = self.spec.layers[index].rope
        rope = self._ropes.setdefault(rope_spec, Rope(rope_spec, self.spec.head_dim))
        block = Block(self.spec, index, rope)
        self._fill(block, self.family.layer_tensors(self.spec, index))
        return block

    def load_head(self) -> Head:
        """The final norm and the vocabulary head in fp32."""
        head = Head(self.spec)
        self._fill(head, self._head_places())
        return head

    def embed(self, token_ids: Tensor) -> Tensor:
        """[S] -> [S, hidden], read row by row from the file.

        Raises GenerationFailed for an id outside the vocabulary.
        """
        info = self.file.tensors[EMBEDDING]
        try:
            rows = dequantise_rows(self.file.raw(EMBEDDING), info.type, info.shape, token_ids)
        except IndexError as error:
            raise GenerationFailed(
                f"token ids lie between 0 and {self.spec.vocabulary - 1}: {error}"
            ) from None
        return rows.mul_(self.spec.embedding_scale)

    def close(self) -> None:
        """Lets go of the file; what was loaded stays."""
        self.file.close()

    def _fill(self, module: nn.Module, places: tuple[TensorPlace, ...]) -> None:
        parameters = dict(module.named_parameters())
        for place in places:
            info = self.file.tensors[place.tensor]
            rows = slice(place.first_row, place.first_row + place.shape[0])
            out = parameters[place.parameter][rows]
            dequantise(self.file.raw(place.tensor), info.type, info.shape, out)

    def _head_places(self) -> tuple[TensorPlace, ...]:
        spec = self.spec
        output = EMBEDDING if spec.tied_head else OUTPUT
        return (
            TensorPlace(OUTPUT_NORM, (spec.hidden_size,), "norm.weight"),
            TensorPlace(output, (spec.vocabulary, spec.hidden_size), "weight"),
        )

    def _places(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that the model has, and no other."""
        spec = self.spec
        layers = [self.family.layer_tensors(spec, index) for index in range(len(spec.layers))]
        places = [place for layer in (*layers, self._head_places()) for place in layer]
        shapes = {place.tensor: place.shape for place in places}
        shapes[EMBEDDING] = (spec.vocabulary, spec.hidden_size)
        return shapes


def _check_tensors(file: GGUFFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - file.tensors.keys())
    extra = sorted(file.tensors.keys() - expected.keys())
    wrong = sorted(
        f"{name} is {list(file.tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in file.tensors and file.tensors[name].shape != shape
    )
    faults = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}"
        for what, names in (("missing", missing), ("not known", extra), ("wrong shape", wrong))
        if names
    ]
    if faults:
        raise BadModelFile(
            f"the tensors of {file.path} do not fit its header; {'; '.join(faults)}. "
            "Copy or download it again."
        )


def _fp32_bytes(places: tuple[TensorPlace, ...]) -> int:
    return sum(torch.Size(place.shape).numel() for place in places) * FP32_BYTES
