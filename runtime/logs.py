"""The stage-input log: what a stage gave the next one, for the device that takes that one's place.

Each row is kept at its sender, beside the cache that it came out of. What all logs of a device take
is bounded; where it is not enough the oldest one ends, and its conversation replays in full.
"""

from __future__ import annotations

import weakref
from typing import Final

import torch
from torch import Tensor

BLOCK_ROWS: Final = 256  # a log grows by so many rows, and never moves them: 2 MB at 2048 numbers


class Logs:
    """The logs of one device, of all its models."""

    def __init__(self, limit_bytes: int) -> None:
        """Together they take no more than that; 0 keeps none."""
        self.limit_bytes = limit_bytes
        self._logs: list[weakref.ref[Log]] = []  # the oldest first; gone with their sessions

    @property
    def size_bytes(self) -> int:
        """What is allocated; what is shared counts for each log that has it."""
        return sum(log.size_bytes for log in self._alive())

    def begin(self) -> Log:
        """An empty log."""
        log = Log(self)
        self._logs.append(weakref.ref(log))
        return log

    def make_room(self) -> None:
        """Ends the oldest logs until the rest is within the limit."""
        alive = self._alive()
        left_bytes = sum(log.size_bytes for log in alive)
        for log in alive:
            if left_bytes <= self.limit_bytes:
                return
            left_bytes -= log.size_bytes
            log.end_it()

    def _alive(self) -> list[Log]:
        self._logs = [ref for ref in self._logs if ref() is not None]
        return [log for ref in self._logs if (log := ref()) is not None]


class Log:
    """Rows [N, width] of one session at the positions [first, end).

    The worker's thread adds, the event loop reads: rows below the `end` that it sees are there.
    """

    def __init__(self, logs: Logs) -> None:
        self.first = 0
        self.end = 0
        self._logs = logs
        self._blocks: list[Tensor] = []  # [BLOCK_ROWS, width] each, the first from `first` on
        self._lent = 0  # so many blocks are another log's too, and are copied before they change
        self._is_over = False

    @property
    def size_bytes(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    def add(self, position: int, rows: Tensor) -> None:
        """Adds rows [N, width] at `position`; what was there or later is forgotten. Behind a gap
        the log begins anew.
        """
        if self._is_over:
            return
        if not self.first <= position <= self.end:
            self._blocks, self._lent, self.first = [], 0, position
        self.end = position
        done = 0
        while done < len(rows):
            index, start = divmod(self.end - self.first, BLOCK_ROWS)
            block = self._own(index, rows)
            if block is None:
                return
            count = min(len(rows) - done, BLOCK_ROWS - start)
            block[start : start + count] = rows[done : done + count]
            done += count
            self.end += count

    def rows(self, first: int, count: int) -> Tensor | None:
        """Rows [count, width] from position `first` on; None where the log has not all of them."""
        blocks, begin, end = self._blocks, self.first, self.end
        if count < 1 or not begin <= first <= first + count <= end:
            return None
        low, high = first - begin, first + count - begin
        found = blocks[low // BLOCK_ROWS : -(-high // BLOCK_ROWS)]
        skip = low % BLOCK_ROWS
        return torch.cat(found)[skip : skip + count] if found else None

    def cut(self, position: int) -> None:
        """Forgets the rows at and after `position`."""
        self.end = max(self.first, min(self.end, position))

    def lend(self, end: int) -> Log:
        """A log that goes on from the rows before `end`; nothing is copied until one of the two
        writes there.
        """
        log = self._logs.begin()
        end = min(end, self.end)
        if self._is_over or end <= self.first:
            return log
        count = -(-(end - self.first) // BLOCK_ROWS)
        log._blocks, log.first, log.end = self._blocks[:count], self.first, end
        self._lent, log._lent = max(self._lent, count), count
        self._logs.make_room()
        return log

    def end_it(self) -> None:
        """From now on it has nothing, and takes nothing."""
        self._is_over, self._blocks = True, []
        self.first = self.end = 0

    def _own(self, index: int, like: Tensor) -> Tensor | None:
        """The block to write to, allocated and ours alone; None where that ended this very log."""
        if index == len(self._blocks):
            self._blocks.append(like.new_empty(BLOCK_ROWS, like.shape[1]))
            self._logs.make_room()
        elif index < self._lent:
            self._blocks = [*self._blocks[:index], self._blocks[index].clone()]
            self._lent = index
        return None if self._is_over else self._blocks[index]
