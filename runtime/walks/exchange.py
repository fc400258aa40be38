"""What a walk needs of the devices that share its stage: pieces out, pieces in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

Key = tuple[int, int]  # the share that a piece comes from, and its number within the turn


class Exchange(Protocol):
    """Of one device during one turn, used by its worker thread. Devices are told by the index of
    their share.
    """

    @property
    def me(self) -> int: ...

    @property
    def count(self) -> int: ...

    def start_pass(self) -> None:
        """Before the pieces of a pass through the layers; a turn may have several."""

    def send(self, number: int, rows: Mapping[int, Tensor], *, exact: bool = False) -> None:
        """Rows [S, width] on their way to each of those devices, as the link's wire type unless
        they have to be `exact`. The memory must not be written to afterwards. Never waits.
        """

    def take(self, origin: int, number: int, shape: tuple[int, int]) -> Tensor:
        """What `origin` sent under that number, [S, width] fp32. Waits for it.

        Raises GenerationFailed when the turn is given up, for a device failed, when nothing came
        for too long, or something of another shape; StaleEpoch when a device was lost.
        """

    def wait(self, wanted: Sequence[Sequence[Key]]) -> int:
        """Until all pieces of one of these lists have come, so that `take` would not wait; which
        one, the first where there are several. Raises as `take` does.
        """


def others(exchange: Exchange) -> list[int]:
    """The other devices, the next one first, so that not all send to the same one at once."""
    return [(exchange.me + step) % exchange.count for step in range(1, exchange.count)]


def to_others(exchange: Exchange, rows: Tensor) -> dict[int, Tensor]:
    """The same rows for each of the other devices, for `send`."""
    return dict.fromkeys(others(exchange), rows)
