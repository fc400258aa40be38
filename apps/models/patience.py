"""Patience: how long a transfer waits for pieces that do not come, and what is told in the end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

from apps.models.messages import HaveReply
from apps.models.piece_queue import PieceQueue
from apps.models.source import Source
from mesh.errors import NowhereHere, WeightsMissing
from runtime.stored.partial import PartialModel

PATIENCE_S = 10.0  # without a single piece; then whoever waits is told what is missing
# A piece that no member had in two looks: with the time to see a loss and to plan, the client of a
# conversation hears it within five seconds.
NOWHERE_S = 2.0


class Patience:
    """With the members that should have what is in the queue; times are the loop's."""

    def __init__(self, partial: PartialModel, queue: PieceQueue) -> None:
        self._partial = partial
        self._queue = queue
        self._progress_s = 0.0
        self._nowhere: frozenset[int] = frozenset()  # wanted, and no member has it
        self._nowhere_s = math.inf  # since when

    def begin(self, now_s: float) -> None:
        """Something is wanted, for the first time in a while."""
        self._progress_s, self._nowhere_s = now_s, math.inf

    def progressed(self, now_s: float) -> None:
        """A piece came, and was right."""
        self._progress_s = now_s

    def looked(self, members: Sequence[HaveReply], now_s: float) -> None:
        """What none of them has, or will have in a moment."""
        is_known = not any(have.pending for have in members)
        runs = [have.runs for have in members]
        self._nowhere = self._queue.nowhere(runs) if is_known else frozenset()
        self._nowhere_s = min(self._nowhere_s, now_s) if self._nowhere else math.inf

    def check(self, sources: Iterable[Source]) -> None:
        """Raises NowhereHere where nobody has a piece, WeightsMissing when nothing has come for too
        long; `sources` is everyone that gave something.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._nowhere_s >= NOWHERE_S:
            raise NowhereHere(
                f"no device here has {self._megabytes(self._nowhere)} of "
                f"{self._partial.about.name}. What has come is kept; bring back a device that has "
                "them",
                self._nowhere,
            )
        if now_s - self._progress_s < PATIENCE_S:
            return
        orphans = self._queue.orphans
        damaged = [source.name for source in sources if source.damaged]
        why = f"; damaged pieces came from {', '.join(damaged)}" if damaged else ""
        what = self._megabytes(orphans) if orphans else "what is left"
        raise WeightsMissing(
            f"no device here gives {what} of {self._partial.about.name}{why}. What has come is "
            "kept; bring back a device that has the model whole"
        )

    def _megabytes(self, pieces: Iterable[int]) -> str:
        return f"{sum(map(self._partial.manifest.size_of, pieces)) / 1e6:.1f} MB"
