"""How fast something comes: bytes per second over the last moments."""

from __future__ import annotations

from collections import deque

SPAN_S = 2.0  # long enough to be steady, short enough to follow a link that changes


class Pace:
    """Knows no clock: whoever adds says when."""

    def __init__(self, now_s: float) -> None:
        self._came: deque[tuple[float, int]] = deque()
        self._began_s = now_s
        self._sum = 0

    def add(self, size_bytes: int, now_s: float) -> None:
        self._came.append((now_s, size_bytes))
        self._sum += size_bytes
        self._drop(now_s)

    def bytes_per_s(self, now_s: float) -> float:
        """0 until something has come."""
        self._drop(now_s)
        span_s = min(SPAN_S, max(now_s - self._began_s, 1e-3))
        return self._sum / span_s

    def _drop(self, now_s: float) -> None:
        while self._came and self._came[0][0] < now_s - SPAN_S:
            self._sum -= self._came.popleft()[1]
