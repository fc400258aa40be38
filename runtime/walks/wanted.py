"""What is wanted of the rows of a pass where a walk ends: all, some, or what they sum up to."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Summary(Enum):
    """One row that stands for all of a pass. Devices that have some of them make a part each."""

    MEAN = auto()
    MAX = auto()

    def part(self, rows: Tensor) -> Tensor:
        """Of some rows, at least one: [R, hidden] -> [1, hidden]"""
        if self is Summary.MEAN:
            return rows.sum(dim=0, keepdim=True)
        return rows.amax(dim=0, keepdim=True)

    def whole(self, parts: Tensor, count: int) -> Tensor:
        """Of the parts of `count` rows: [P, hidden] -> [1, hidden]"""
        found = self.part(parts)
        return found / count if self is Summary.MEAN else found


Wanted = Sequence[int] | Summary | None  # rows of a pass, or what stands for all; None: all


def of_all(hidden: Tensor, wanted: Wanted) -> Tensor:
    """What is wanted of a pass on a device that has all its rows: [S, hidden] -> [W, hidden]"""
    if wanted is None:
        return hidden
    if isinstance(wanted, Summary):
        return wanted.whole(wanted.part(hidden), len(hidden))
    return hidden[list(wanted)]
