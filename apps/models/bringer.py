"""The share that the leader wants ready on this device's disk, before a plan's epoch begins.

The old plan runs on meanwhile, however long it takes. The leader asks again and again and hears how
far it is; so a long transfer never looks like a dead device, and one that stands still is seen.
"""

from __future__ import annotations

import asyncio

from apps.models.fetcher import Fetcher
from apps.models.library import Library
from apps.models.messages import BringReply, BringRequest
from apps.planning.messages import Outcome
from mesh.errors import ModelNotFound, NowhereHere, PotluckError, WeightsMissing

ANSWER_S = 2.0  # the leader hears after that long at the latest


class Bringer:
    """One share at a time: another one ends the first, and what has come of it stays."""

    def __init__(self, library: Library, fetcher: Fetcher) -> None:
        self._library = library
        self._fetcher = fetcher
        self._request: BringRequest | None = None
        self._task: asyncio.Task[object] | None = None

    async def bring(self, request: BringRequest) -> BringReply:
        """OK once everything is here; IMPOSSIBLE or RETRY with the reason; else WAIT."""
        task = self._task_for(request)
        await asyncio.wait([task], timeout=ANSWER_S)
        if not task.done():
            done, wanted = self._progress(request)
            return BringReply(Outcome.WAIT, "", done, wanted)
        self._request = None
        if task.cancelled():
            return BringReply(Outcome.RETRY, "another share is wanted here now", 0, 0)
        match task.exception():
            case None:
                return BringReply(Outcome.OK, "", 0, 0)
            case NowhereHere() as error:
                return BringReply(Outcome.RETRY, str(error), 0, 0, is_nowhere=True)
            case WeightsMissing() | ModelNotFound() as error:
                # It may come back with the device that has it.
                return BringReply(Outcome.RETRY, str(error), 0, 0)
            case PotluckError() | OSError() as error:
                return BringReply(Outcome.IMPOSSIBLE, str(error) or type(error).__name__, 0, 0)
            case error:
                raise error

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _task_for(self, request: BringRequest) -> asyncio.Task[object]:
        if self._task is not None and self._request == request:
            return self._task
        if self._task is not None and not self._task.cancel() and not self._task.cancelled():
            self._task.exception()  # seen: the leader that wanted that share asks no more
        self._request = request
        # Kept here; `close` ends it, or the next request.
        self._task = asyncio.create_task(
            self._library.share(request.model, request.layers, request.cut)
        )
        return self._task

    def _progress(self, request: BringRequest) -> tuple[int, int]:
        for state in self._fetcher.transfers:
            if state.model == request.model.model:
                return state.done_bytes, state.wanted_bytes
        return 0, 0
