"""A walk: how one turn goes through the layers of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from torch import Tensor

from runtime.models.parts import Layer, through
from runtime.walks.wanted import Wanted, of_all


class Walk(Protocol):
    """Of one device; what it exchanges with others is its own affair."""

    @property
    def is_shared(self) -> bool:
        """Whether other devices take part."""

    def run(
        self,
        layers: Sequence[Layer[Any]],
        hidden: Tensor,
        places: Sequence[Any],
        wanted: Wanted = None,
        *,
        everywhere: bool = False,
    ) -> Tensor | None:
        """All rows [S, hidden] through the layers, each with where the rows stand in it.

        What is wanted of them comes out, [W, hidden]; unless it is to be `everywhere`, None on a
        device that is not the stage's lead. Raises GenerationFailed where the devices of the stage
        do not get through it together.
        """


class Whole:
    """All of it here."""

    is_shared = False

    def run(
        self,
        layers: Sequence[Layer[Any]],
        hidden: Tensor,
        places: Sequence[Any],
        wanted: Wanted = None,
        *,
        everywhere: bool = False,
    ) -> Tensor:
        for layer, place in zip(layers, places, strict=True):
            hidden = through(layer, hidden, place)
        return of_all(hidden, wanted)


WHOLE: Final = Whole()
