"""The sessions of a stage: the event loop opens and closes them while the worker computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.arrival import Tile
from runtime.former import Former, Parted, Weights
from runtime.history import History
from runtime.kv_cache import LayerCache, SessionCache
from runtime.logs import Logs
from runtime.memory import Kept, Memory, recalled
from runtime.models.block import Block
from runtime.models.spec import DecoderSpec
from runtime.prefix import common_tokens
from runtime.refill import Held
from runtime.sampling import Sampling


@dataclass(slots=True, eq=False)
class Open:
    """What a stage holds of one session."""

    memory: Memory
    sampling: Sampling
    history: History | None
    prefix: bytes = b""  # the chain of the prompt
    held: int = 0  # tokens that all layers have, and that no turn under way takes back
    computing: bool = False  # in the worker's thread, right now
    kept_as: bytes = b""  # the chain under which its cache is kept when that is over
    coming: LayerCache | None = None  # of one layer, from another device, until it is whole

    @property
    def cache(self) -> SessionCache:
        return self.memory.cache


class Sessions:
    """Which sessions a stage has, and what it remembers of others."""

    def __init__(
        self,
        weights: Weights,
        span: Span,
        blocks: Sequence[Block],
        spec: DecoderSpec,
        device: torch.device,
    ) -> None:
        """`spec` says what a token's keys and values are, as the blocks have them."""
        self._weights = weights
        self.span = span
        self._blocks = blocks
        self._spec = spec
        self._device = device
        self._open: dict[SessionId, Open] = {}
        # Between the loop and the worker: what a turn computes, and how far each session holds.
        self._lock = threading.RLock()
        self._kept = Kept()
        self._logs = Logs(0)  # nobody asks a stage alone for what it gave

    def open(
        self,
        session: SessionId,
        sampling: Sampling,
        context: int,
        *,
        name: SessionId | None = None,
        afresh: bool = False,
        prefix: bytes = b"",
        history: History | None = None,
        places: int = 1,
    ) -> Held:
        """Makes a cache; what the session held before is forgotten.

        Returns what need not be computed again: the conversation of that `name` was here under
        another session, unless all is to begin `afresh`; or one that ended left tokens of the
        prompt, named by the chain `prefix`, or one that is open has come so far. At most `places`
        caches stay in memory.
        """
        with self._lock:
            self._open.pop(session, None)
            name = session if name is None else name
            memory, held = self._recalled(name, prefix, context, afresh)
            memory.is_paused = False
            memory.cache.limit(context)
            self._open[session] = Open(memory, sampling, history, prefix, held)
            self.limit(places)
            return memory.held(self.span)

    def follow(self, before: object, logs: Logs) -> None:
        """Comes in force after another stage of the model on this device, or after none.

        Of the layers that both have, in the very same weights, the caches go on, and the sessions
        that were open there can be resumed here. What leaves from now on is kept in `logs`.
        """
        self._logs = logs
        if not isinstance(before, Sessions):
            return
        old, new = before.span, self.span
        common = range(max(old.first, new.first), min(old.last, new.last))
        is_same = [
            self._blocks[index - new.first] is before._blocks[index - old.first] for index in common
        ]
        if not is_same or not all(is_same):
            return
        with before._lock, self._lock:
            for one in before._leave():
                empty = self._empty(one.cache.context)
                self._kept.put(one.under(old, new, empty, logs))

    def _leave(self) -> list[Memory]:
        """All that is remembered; from now on nothing is."""
        memories = [*self._kept, *(one.memory for one in self._open.values())]
        self._kept.clear()
        self._open.clear()
        return memories

    def adopt(self, former: Former) -> None:
        """Conversations go on here with what this device had kept of these layers."""
        with self._lock:
            for one in former.take(self._weights, self.span):
                memory = self._kept.take(one.name)
                if memory is None:
                    empty = self._empty(self._spec.context)
                    memory = Memory(one.name, empty, self._logs.begin(), is_paused=True)
                for layer, cache in one.caches.items():
                    memory.cache.layers[layer - self.span.first] = cache
                self._kept.put(memory)

    def parting(self, kept: Span | None) -> list[Parted]:
        """Of the conversations that go on: the caches of the layers that are not of `kept`, which
        is what this device has for itself of the next plan.
        """
        with self._lock:
            going = [one.memory for one in self._open.values()]
            going += [memory for memory in self._kept if memory.is_paused]
            return [Parted(self._weights, one.name, one.besides(self.span, kept)) for one in going]

    def cache_of(self, name: SessionId, layer: int) -> LayerCache | None:
        """That of a conversation which is open here, or paused."""
        with self._lock:
            memories = [*self._kept, *(opened.memory for opened in self._open.values())]
        named = (one.cache.layers for one in memories if one.name == name)
        layers = next(named, None) if layer in self.span else None
        return layers[layer - self.span.first] if layers is not None else None

    @property
    def cache_bytes(self) -> int:
        """What the caches take by now that are open, or kept."""
        with self._lock:
            memories = [*self._kept, *(opened.memory for opened in self._open.values())]
            return sum(one.cache.size_bytes for one in memories)

    @property
    def cache_width(self) -> int:
        """How many numbers a layer keeps of a token."""
        return 2 * self._spec.kv_heads * self._spec.head_dim

    @torch.inference_mode()
    def fill(self, session: SessionId, layer: int, tile: Tile) -> None:
        """Takes what another device had in a layer's cache, tile by tile.

        Raises GenerationFailed for one that cannot be gone on from, before anything is allocated.
        """
        one = self._open.get(session)
        if one is None:
            return
        if tile.row == 0:
            alone, context = Span(layer, layer + 1), one.cache.context
            one.coming = SessionCache(self._spec, alone, context, self._device).layers[0]
            one.coming.begin(tile.first, tile.count)
        assert one.coming is not None, "the first tile comes first"
        one.coming.unpack(tile.rows.to(self._device))
        if tile.is_last:  # half a cache would be none
            one.cache.layers[layer - self.span.first], one.coming = one.coming, None

    def held(self, session: SessionId) -> Held:
        """What is here of an open session by now."""
        with self._lock:
            one = self._open.get(session)
            if one is None:
                return Held()
            one.held = one.cache.end
            return one.memory.held(self.span)

    def given(self, session: SessionId, layer: int, first: int, count: int) -> Tensor:
        """Rows [count, hidden] that went into a layer, from position `first` on.

        Raises GenerationFailed where they are not kept.
        """
        one = self._open.get(session)
        rows = one.memory.given(self.span, layer, first, count) if one is not None else None
        if rows is None:
            raise GenerationFailed(f"what went into layer {layer} is not kept here any more")
        return rows

    def limit(self, places: int) -> None:
        """Lets go of caches that are kept beyond `places`; those of open sessions stay."""
        with self._lock:
            while len(self._kept) and len(self._open) + len(self._kept) > places:
                self._kept.drop_oldest()

    def close(self, session: SessionId, prefix: bytes = b"", *, paused: bool = False) -> None:
        """Ends a session; its cache is kept for another that begins with the tokens of `prefix`,
        and by its name where the conversation is only `paused`.

        Where the worker still writes to it, which the lead of a stage may be done with already, it
        is kept for others from then on.
        """
        with self._lock:
            opened = self._open.pop(session, None)
            if opened is None:
                return
            if opened.computing:
                opened.kept_as, prefix = prefix, b""
            opened.memory.chain, opened.memory.is_paused = prefix, paused
            if prefix or paused:
                self._kept.put(opened.memory)

    def _keep_late(self, one: Open) -> None:
        """What was closed while this thread wrote to it is for others from now on."""
        if one.kept_as and all(one.memory is not other.memory for other in self._open.values()):
            one.memory.chain = one.kept_as
            self._kept.put(one.memory)

    def _recalled(
        self, name: SessionId, prefix: bytes, context: int, afresh: bool
    ) -> tuple[Memory, int]:
        """What is known of a conversation, or of others that begin like it, and how far."""
        for session, one in list(self._open.items()):
            if one.memory.name == name:  # its owner closed it, and that did not come here
                self.close(session, paused=True)
        if afresh:
            self._kept.take(name)
        lenders = [
            (min(common_tokens(one.prefix, prefix), one.held), one.memory)
            for one in self._open.values()
        ]
        return recalled(self._kept, lenders, name, prefix, lambda: self._empty(context), self._logs)

    def _empty(self, context: int) -> SessionCache:
        return SessionCache(self._spec, self.span, context, self._device)
