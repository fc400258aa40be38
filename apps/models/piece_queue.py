"""Which piece is asked of whom next. Decides only; what comes and goes is told to it.

Every source has a line of the pieces it can bring, those first that few others have, so that a
device with a part of the model brings its part while one with all of it brings the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from mesh.ids import PeerId
from mesh.limits import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, PIECE_WINDOW_S

Runs = Sequence[tuple[int, int]]


def window_bytes(bytes_per_s: float) -> int:
    """How much to ask ahead of a source of this speed; 0 for a speed not known yet."""
    return int(min(max(bytes_per_s * PIECE_WINDOW_S, MIN_WINDOW_BYTES), MAX_WINDOW_BYTES))


class PieceQueue:
    """A piece is wanted until it arrives, asked of at most one source at a time, and never again
    of a source that failed to bring it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._wanted: dict[int, int] = {}  # to how urgent it is
        self._wants = 0
        self._asked: dict[int, PeerId] = {}
        self._has: dict[PeerId, npt.NDArray[np.bool_]] = {}
        self._failed: dict[int, set[PeerId]] = {}
        self._lines: dict[PeerId, deque[int]] = {}

    @property
    def wanted(self) -> int:
        """Pieces that have not arrived."""
        return len(self._wanted)

    @property
    def orphans(self) -> list[int]:
        """Pieces that are wanted and that no source can bring."""
        return [
            piece
            for piece in sorted(self._wanted)
            if piece not in self._asked and not any(self._may(s, piece) for s in self._has)
        ]

    def nowhere(self, devices: Iterable[Runs]) -> frozenset[int]:
        """Pieces that are wanted and that none of these devices has."""
        has = np.zeros(self._count, np.bool_)
        for first, last in (run for runs in devices for run in runs):
            has[max(first, 0) : max(last, 0)] = True
        return frozenset(piece for piece in self._wanted if not has[piece])

    def want(self, pieces: Iterable[int]) -> None:
        """These before all others that are not asked for yet."""
        self._wants += 1
        self._wanted |= dict.fromkeys((p for p in pieces if 0 <= p < self._count), self._wants)
        self._line_up()

    def unwant(self, pieces: Iterable[int]) -> None:
        """What is under way may still arrive."""
        for piece in pieces:
            self._wanted.pop(piece, None)

    def offer(self, source: PeerId, runs: Runs) -> None:
        """The source has these pieces, and no others any more."""
        has = np.zeros(self._count, np.bool_)
        for first, last in runs:
            has[max(first, 0) : max(last, 0)] = True
        if source not in self._has or not np.array_equal(self._has[source], has):
            self._has[source] = has
            self._line_up()

    def withdraw(self, source: PeerId) -> None:
        """The source is gone: what was asked of it is others' to bring."""
        self._has.pop(source, None)
        self._lines.pop(source, None)
        for piece in [piece for piece, asked in self._asked.items() if asked == source]:
            del self._asked[piece]
            self._put_back(piece)

    def next_for(self, source: PeerId) -> int | None:
        """The next piece to ask of this source; None when there is none for it now."""
        line = self._lines.get(source, deque())
        while line:
            piece = line.popleft()
            if piece in self._wanted and piece not in self._asked and self._may(source, piece):
                self._asked[piece] = source
                return piece
        return None

    def arrived(self, piece: int) -> None:
        self._wanted.pop(piece, None)
        self._asked.pop(piece, None)
        self._failed.pop(piece, None)

    def failed(self, piece: int, source: PeerId) -> None:
        """The source does not have this piece, or has it damaged."""
        self._failed.setdefault(piece, set()).add(source)
        if self._asked.get(piece) == source:
            del self._asked[piece]
            self._put_back(piece)

    def _put_back(self, piece: int) -> None:
        for source, line in self._lines.items():
            if self._may(source, piece):
                line.appendleft(piece)

    def _may(self, source: PeerId, piece: int) -> bool:
        return bool(self._has[source][piece]) and source not in self._failed.get(piece, ())

    def _line_up(self) -> None:
        pieces = np.array(sorted(self._wanted), dtype=np.int64)
        if not len(pieces) or not self._has:
            self._lines = {source: deque() for source in self._has}
            return
        urgency = np.array([self._wanted[piece] for piece in pieces.tolist()])
        holders = np.sum([has[pieces] for has in self._has.values()], axis=0)
        ordered = pieces[np.lexsort((pieces, holders, -urgency))]
        self._lines = {
            source: deque(ordered[has[ordered]].tolist()) for source, has in self._has.items()
        }
