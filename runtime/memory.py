"""What a stage remembers of conversations: their caches, and what it gave the next stage."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mesh.ids import SessionId
from planner.plan import Span
from runtime.kv_cache import LayerCache, SessionCache
from runtime.logs import Log, Logs
from runtime.prefix import common_tokens
from runtime.refill import Held


@dataclass(slots=True, eq=False)
class Memory:
    """Of one conversation, which keeps its name from plan to plan."""

    name: SessionId
    cache: SessionCache
    log: Log  # of the rows that left the stage
    chain: bytes = b""  # of the tokens that it holds, where another conversation may go on from it
    # Of the stage before this one: rows that entered `inner_layer`, which is ours by now.
    inner: Log | None = None
    inner_layer: int = 0
    is_paused: bool = False  # it goes on under the next plan

    def held(self, span: Span) -> Held:
        """What the owner is told of it."""
        log, layer = (self.log, span.last) if self.inner is None else (self.inner, self.inner_layer)
        layers = self.cache.layers
        least = max((one.least for one in layers), default=0)
        return Held(tuple(one.end for one in layers), least, layer, log.first, log.end)

    def besides(self, span: Span, kept: Span | None) -> Mapping[int, LayerCache]:
        """By layer, those of its caches, which are of the layers `span`, that are not of `kept`."""
        caches = enumerate(self.cache.layers, span.first)
        return {layer: one for layer, one in caches if kept is None or layer not in kept}

    def given(self, span: Span, layer: int, first: int, count: int) -> Tensor | None:
        """Rows [count, hidden] that go into a layer; None where they are not in a log."""
        if layer == span.last:
            return self.log.rows(first, count)
        if self.inner is None or layer != self.inner_layer:
            return None
        return self.inner.rows(first, count)

    def cut(self, position: int) -> None:
        """Forgets what is at and after `position`."""
        self.cache.truncate(position)
        self.log.cut(position)
        self.inner = None

    def under(self, old: Span, new: Span, empty: SessionCache, logs: Logs) -> Memory:
        """The same for a stage of other layers: those in common keep their caches.

        `empty` is a cache for the new layers.
        """
        for index in range(max(old.first, new.first), min(old.last, new.last)):
            empty.layers[index - new.first] = self.cache.layers[index - old.first]
        if old.last == new.last:
            return Memory(self.name, empty, self.log, self.chain, self.inner, self.inner_layer)
        inner = self.log if new.first < old.last < new.last else None
        return Memory(self.name, empty, logs.begin(), self.chain, inner, old.last)


class Kept:
    """Memories of conversations that ended, or wait for the next plan; the oldest goes first."""

    def __init__(self) -> None:
        self._memories: OrderedDict[SessionId, Memory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._memories)

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._memories.values())

    def put(self, memory: Memory) -> None:
        """The last to go. Of two that hold the same tokens for others one is enough."""
        alike = [one.name for one in self._memories.values() if one.chain == memory.chain != b""]
        for name in (memory.name, *alike):
            self._memories.pop(name, None)
        self._memories[memory.name] = memory

    def take(self, name: SessionId) -> Memory | None:
        """That of a conversation which goes on."""
        return self._memories.pop(name, None)

    def find(self, prefix: bytes) -> tuple[Memory | None, int]:
        """The one that has the most of `prefix`, and how much of it."""
        best = max(self._memories.values(), key=lambda one: _known(one, prefix), default=None)
        known = _known(best, prefix) if best is not None else 0
        if best is None or not known or not best.cache.reaches(known):
            return None, 0
        return best, known

    def drop_oldest(self) -> None:
        self._memories.popitem(last=False)

    def clear(self) -> None:
        self._memories.clear()


def _known(memory: Memory, prefix: bytes) -> int:
    """How many tokens of `prefix` it has. It may have fewer than its chain names: of a stage whose
    rows are cut, only the lead has what was said in answer.
    """
    return min(common_tokens(memory.chain, prefix), memory.cache.end) if memory.chain else 0


def recalled(
    kept: Kept,
    lenders: Sequence[tuple[int, Memory]],
    name: SessionId,
    prefix: bytes,
    empty: Callable[[], SessionCache],
    logs: Logs,
) -> tuple[Memory, int]:
    """What is known of the conversation `name`, and how many tokens of it all layers have.

    Where nothing is, a kept memory that has tokens of `prefix`, or one that shares the rows of a
    lender, each with how much it has of it, whichever has more; else an empty one.
    """
    if (memory := kept.take(name)) is not None:
        return memory, memory.cache.end
    found, held = kept.find(prefix)
    for known, lender in sorted(lenders, key=lambda one: one[0], reverse=True):
        cache = empty()
        if known > held and cache.borrow(lender.cache, known):
            return Memory(name, cache, lender.log.lend(known)), known
    if found is None:
        return Memory(name, empty(), logs.begin()), 0
    kept.take(found.name)
    found.cut(held)
    found.name, found.chain = name, b""
    return found, held
