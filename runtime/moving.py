"""Moving: caches go with their layers, from the device that had these to the one that has them now.

The owner of a conversation tells the new holder, that asks the former one for layer after layer,
and what comes goes into its caches bit by bit. What does not come is computed again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from mesh.errors import MeshError, PotluckError, ProtocolError, StaleEpoch
from mesh.ids import PeerId, PlanId, SessionId
from mesh.limits import MAX_TENSOR_BYTES
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from planner.plan import Span
from runtime.arrival import Arrival
from runtime.former import Former
from runtime.kv_cache import LayerCache
from runtime.outbox import Outbox
from runtime.post import Computing, Conversation
from runtime.refill import Held
from runtime.session_messages import AskCache, FetchCaches
from runtime.work import Work
from runtime.worker import Worker

# For all that one conversation fetches from one device: beyond, computing again is hardly slower.
FETCH_S: Final = 5.0

Ask = Callable[[PeerId, AskCache], Awaitable[int]]


class Moving:
    """Both ends. Everything but the copying runs in the event loop."""

    def __init__(
        self,
        worker: Worker,
        outbox: Outbox,
        work: Mapping[PlanId, Work],
        refused: Counter[str],
    ) -> None:
        """`work` is the pipeline's own, of every plan in force; `refused` counts frames that are
        dropped, by cause.
        """
        self.former = Former()
        self._worker = worker
        self._outbox = outbox
        self._work = work
        self._refused = refused

    def part(self, before: Computing | None, kept: Span | None) -> None:
        """A plan is over under which this device had the stage `before` for itself; of the next
        one it has the layers `kept` for itself. The caches of the others wait to be fetched.
        """
        if before is not None:
            self.former.keep(before.parting(kept))

    def limit(self, memory_bytes: int) -> None:
        """Beside the caches in use there is so much memory for those that wait to be fetched."""
        in_use = sum(work.post.stage.cache_bytes for work in self._work.values())
        self.former.limit(max(0, memory_bytes - in_use))

    # --- who had a layer --------------------------------------------------------------------------

    async def give(self, peer: PeerId, asked: AskCache) -> int:
        """Sends the device that asks what is here of a layer; how many tokens, 0 for nothing."""
        cache = self.former.find(asked.conversation, asked.layer) or self._current(asked)
        if cache is None:
            return 0
        # In the worker's thread, which may be at a last turn with this very cache.
        first, rows = await self._worker.run(cache.packed, asked.tokens)
        if not 0 < rows.nbytes <= MAX_TENSOR_BYTES:
            return 0
        header = FrameHeader(
            epoch=asked.epoch,
            plan=asked.plan,
            session=asked.session,
            kind=Kind.CACHE,
            dtype=DType.FLOAT32,
            choose=False,
            position=first,
            rows=rows.shape[0],
            row=0,
            tile_rows=rows.shape[0],
            width=rows.shape[1],
            until=asked.layer + 1,
        )
        self._outbox.post(peer, header, rows)
        return len(rows)

    def _current(self, asked: AskCache) -> LayerCache | None:
        """That of a stage in force: the word that its plan is over may be on its way here."""
        for work in self._work.values():
            cache = work.post.stage.cache_of(asked.conversation, asked.layer)
            if cache is not None and work.group is None:
                return cache
        return None

    # --- who has it now ---------------------------------------------------------------------------

    async def fetch(self, request: FetchCaches, owner: PeerId, ask: Ask) -> Held:
        """Fills the caches of some layers with what the giver has; what is here of the conversation
        then. What does not come within FETCH_S is left out.

        Raises StaleEpoch for a conversation that is not open here, ProtocolError for layers or
        tokens that it cannot have.
        """
        work, conversation = self._of(request.plan, request.session, owner)
        span, stage = request.layers, work.post.stage
        is_here = stage.span.first <= span.first < span.last <= stage.span.last
        if not is_here or work.group is not None or request.tokens > conversation.opened.context:
            raise ProtocolError("a stage fetches caches of layers that it has for itself")
        with suppress(TimeoutError, PotluckError):  # what is left out is computed again
            async with asyncio.timeout(FETCH_S):
                for layer in range(span.first, span.last):
                    await self._fetch(conversation, stage, request, layer, ask)
        return stage.held(request.session)

    async def _fetch(
        self,
        conversation: Conversation,
        stage: Computing,
        request: FetchCaches,
        layer: int,
        ask: Ask,
    ) -> None:
        """One layer. Raises MeshError where it does not come, or not whole."""
        opened = conversation.opened
        if opened.conversation is None:
            raise StaleEpoch("a conversation without a name is nowhere else")
        arrival = Arrival(request.giver, layer, request.tokens, stage.cache_width)
        conversation.arrival = arrival
        asked = AskCache(
            opened.epoch, opened.plan, opened.session, opened.conversation, layer, request.tokens
        )
        try:
            count = await ask(request.giver, asked)
            while count:
                tile = await arrival.next()
                await self._worker.run(stage.fill, opened.session, layer, tile)
                count = 0 if tile.is_last else count
        finally:
            conversation.arrival = None

    def on_frame(self, peer: PeerId, frame: TensorFrame, conversation: Conversation) -> None:
        """Takes a tile of a cache; one that nobody waits for any more is dropped.

        Raises ProtocolError for one that no device would send which was asked.
        """
        arrival, header = conversation.arrival, frame.header
        if arrival is None or (arrival.giver, arrival.layer + 1) != (peer, header.until):
            self._refused["late cache"] += 1
            return
        arrival.take(frame)

    def forget(self, peer: PeerId, error: MeshError) -> None:
        """A device is gone: nothing more will come of it."""
        for work in self._work.values():
            for conversation in work.post.conversations.values():
                if conversation.arrival is not None and conversation.arrival.giver == peer:
                    conversation.give_up(error)

    def _of(self, plan: PlanId, session: SessionId, owner: PeerId) -> tuple[Work, Conversation]:
        work = self._work.get(plan)
        conversation = work.post.conversations.get(session) if work is not None else None
        if work is None or conversation is None or conversation.opened.owner != owner:
            raise StaleEpoch("the conversation is not open here")
        return work, conversation
