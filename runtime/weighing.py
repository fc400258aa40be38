"""What layers and their shares take in memory, from a file's header alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from planner.plan import Span
from planner.profile import Cuttable, LayerProfile
from runtime.compute.linear import column_unit
from runtime.compute.precision import Precision
from runtime.cut import Extent, KeptOf
from runtime.formats.excerpt import columns_of
from runtime.formats.filling import held_bytes_of
from runtime.formats.gguf import GGMLType
from runtime.formats.tensor_file import TensorFile
from runtime.models.spec import TensorPlace

Places = tuple[TensorPlace, ...]
ONE = Span(0, 1)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one layer."""

    heads: int
    kv_heads: int
    head_dim: int
    columns: int


class Weigher:
    """Of one open file, for weights held with one precision on one torch device."""

    def __init__(self, file: TensorFile, precision: Precision, device: torch.device) -> None:
        self._file, self._precision, self._device = file, precision, device
        self._known: dict[object, Cuttable] = {}

    def bytes_of(self, places: Places) -> int:
        """What these take when nothing is cut."""
        return held_bytes_of(self._file, places, self._precision, self._device)

    def cuttable(self, places: Places, sizes: Sizes, kept: Callable[[Extent], KeptOf]) -> Cuttable:
        """How the layer with these tensors is cut; `kept` says what a share has of them."""
        types = tuple((one.parameter, one.shape, self._type(one)) for one in places)
        alike = (sizes, types)  # most layers of a model
        if alike not in self._known:
            self._known[alike] = self._cuttable(places, sizes, kept)
        return self._known[alike]

    def _cuttable(self, places: Places, sizes: Sizes, kept: Callable[[Extent], KeptOf]) -> Cuttable:
        def weigh(extent: Extent) -> int:
            of_it = kept(extent)
            return held_bytes_of(self._file, places, self._precision, self._device, of_it)

        rest = weigh(Extent())
        output = self._unit(places, ("attention.output", "cross.output"))
        down = self._unit(places, ("mlp.down",))
        return Cuttable(
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            columns=sizes.columns,
            output_unit=output,
            column_unit=down,
            query_bytes=weigh(Extent(heads=ONE)) - rest,
            kv_bytes=weigh(Extent(kv_heads=ONE)) - rest,
            output_bytes=weigh(Extent(inner=Span(0, output))) - rest,
            column_bytes=weigh(Extent(columns=ONE)) - rest,
            down_bytes=weigh(Extent(down=Span(0, down))) - rest,
            rest_bytes=rest,
        )

    def _unit(self, places: Places, parameters: Sequence[str]) -> int:
        closings = (place for place in places if place.parameter in parameters)
        return math.lcm(
            *(
                column_unit(columns_of(one), self._type(one), self._precision, self._device)
                for one in closings
            )
        )

    def _type(self, place: TensorPlace) -> GGMLType:
        return self._file.tensors[place.tensor].type


def with_cuts(
    layers: Sequence[LayerProfile], cuts: Sequence[Cuttable]
) -> tuple[tuple[LayerProfile, ...], tuple[Cuttable, ...]]:
    """The layers, each with its cut, and the cuts that differ."""
    kinds = {cut: index for index, cut in enumerate(dict.fromkeys(cuts))}
    placed = (replace(one, cut=kinds[cut]) for one, cut in zip(layers, cuts, strict=True))
    return tuple(placed), tuple(kinds)
