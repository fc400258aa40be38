"""What a layer is made of: parts, each standing between two sums into the residual stream.

A share of a layer is a layer of the same kind, made with fewer heads and columns. Its parts open
rows just as wide, and what the closings of all shares give adds up to what the whole layer adds.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from mesh.errors import PlanError
from runtime.compute.linear import Linear

# Where the rows of a pass stand, and what is remembered of those before them.
At = TypeVar("At", contravariant=True)


class Part(Protocol[At]):
    """Attention, to oneself or to a source, or an MLP."""

    @property
    def opening(self) -> Linear:
        """[S, hidden] -> [S, inner]; a share has some of its rows."""

    def inside(self, opened: Tensor, at: At) -> Tensor:
        """[S, inner] -> [S, inner2]: needs all rows of the pass, but only a share's numbers."""

    @property
    def closing(self) -> Linear:
        """[S, inner2] -> [S, hidden]; a share has some of its columns, and one share the bias."""


class AttentionPart(Part[At], Protocol[At]):
    """Attention of rows to one another, whose `inside` is to `attend` with what they `project`."""

    def project(self, opened: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [H, S, D], keys and values [K, S, D] of any rows [S, inner] that stand at `at`,
        all that is done to them before they meet being done.
        """

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, at: At) -> Tensor:
        """What the queries find: [S, inner2]"""


class Layer(Protocol[At]):
    """Its parts, in order, and what stands around them. That works row by row, on any rows."""

    @property
    def parts(self) -> tuple[Part[At], ...]: ...

    @property
    def attention(self) -> AttentionPart[At]:
        """The first part."""

    def enter(self, hidden: Tensor) -> Tensor:
        """What the first part opens: [S, hidden]"""

    def connect(self, index: int, hidden: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Behind part `index`, all [S, hidden]: the residual stream with what the part's closing
        gave, and what the next part opens; behind the last part the stream twice.
        """


def through(layer: Layer[At], hidden: Tensor, at: At) -> Tensor:
    """[S, hidden] -> [S, hidden], all of the layer being here."""
    x = layer.enter(hidden)
    for index, part in enumerate(layer.parts):
        added = part.closing(part.inside(part.opening(x), at))
        hidden, x = layer.connect(index, hidden, added)
    return hidden


def check_share(heads: int, columns: int) -> None:
    """Raises PlanError for a layer that there is nothing of."""
    for count, what in ((heads, "heads"), (columns, "columns")):
        if count < 1:
            raise PlanError(
                f"a share of zero {what}: each device of a stage computes at least one of each "
                f"layer's heads and columns, not {count}; plan without the device"
            )
