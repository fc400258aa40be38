"""Former layers: caches of layers that are others' by now, kept until those have fetched them, or
until the layers are back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.ids import ModelId, SessionId
from planner.plan import Span
from runtime.compute.precision import Precision
from runtime.kv_cache import LayerCache

# A conversation that goes on asks within a second of the new plan; one whose owner is gone never.
KEPT_S: Final = 30.0


Weights = tuple[ModelId, Precision]


@dataclass(frozen=True, slots=True, eq=False)
class Parted:
    """Of one conversation, by its name in all sessions: the caches that these weights gave, by the
    layer of the model.
    """

    weights: Weights
    name: SessionId
    caches: Mapping[int, LayerCache]

    @property
    def size_bytes(self) -> int:
        return sum(cache.size_bytes for cache in self.caches.values())


class Former:
    """Must be used inside a running event loop."""

    def __init__(self) -> None:
        self._parted: dict[SessionId, Parted] = {}  # the oldest first
        self._timers: dict[SessionId, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()  # a new one after each time that something went

    def __len__(self) -> int:
        return len(self._parted)

    def keep(self, parted: Iterable[Parted]) -> None:
        """For KEPT_S. What was kept of the same conversation under an earlier plan stays, too."""
        for one in parted:
            if not one.caches:
                continue
            before = self._parted.get(one.name)
            caches = {**(before.caches if before else {}), **one.caches}
            self._forget(one.name)
            self._parted[one.name] = Parted(one.weights, one.name, caches)
            loop = asyncio.get_running_loop()
            self._timers[one.name] = loop.call_later(KEPT_S, self.let_go, one.name)

    def find(self, name: SessionId, layer: int) -> LayerCache | None:
        one = self._parted.get(name)
        return one.caches.get(layer) if one is not None else None

    def take(self, weights: Weights, layers: Span) -> list[Parted]:
        """What is kept of these layers, which this device has again; from now on it is not."""
        taken = []
        for one in [one for one in self._parted.values() if one.weights == weights]:
            back = {layer: cache for layer, cache in one.caches.items() if layer in layers}
            rest = {layer: cache for layer, cache in one.caches.items() if layer not in layers}
            if back:
                self.let_go(one.name)
                self.keep([Parted(weights, one.name, rest)])
                taken.append(Parted(weights, one.name, back))
        return taken

    def let_go(self, name: SessionId) -> None:
        """The conversation has all that it needs elsewhere, or is over."""
        if name in self._parted:
            self._forget(name)
            self._changed.set()
            self._changed = asyncio.Event()

    def limit(self, size_bytes: int) -> None:
        """Lets go of the oldest until the rest takes no more than that."""
        left_bytes = sum(one.size_bytes for one in self._parted.values())
        for one in list(self._parted.values()):
            if left_bytes <= size_bytes:
                return
            left_bytes -= one.size_bytes
            self.let_go(one.name)

    async def fetched(self) -> None:
        """Returns when nothing is kept any more."""
        while self._parted:
            await self._changed.wait()

    def _forget(self, name: SessionId) -> None:
        if self._parted.pop(name, None) is not None:
            self._timers.pop(name).cancel()
