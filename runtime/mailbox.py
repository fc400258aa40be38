"""What other devices send to a computation under way: the loop puts it in, the worker waits for it.

The only place where the worker's thread waits for the network. Each wait has a deadline, and all of
them end at once when the plan is over or a device is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from mesh.errors import GenerationFailed, PotluckError, ProtocolError
from runtime.chores import Chores

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# The last resort against a device that is stuck though its heart beats; one that is lost ends a
# wait at once. Longer than any turn that it may be in for another model: nobody has measured the
# slowest device, so it is a guess, and a generous one.
SILENCE_TIMEOUT_S: Final = 60.0


class Mailbox(Generic[K, T]):
    """Letters by key, each taken once. Thread-safe."""

    def __init__(self, max_letters: int, max_bytes: int, chores: Chores | None = None) -> None:
        """So much may lie here that nobody has taken. Whoever waits does the chores meanwhile."""
        self._chores = chores
        self._max_letters = max_letters
        self._max_bytes = max_bytes
        self._letters: dict[K, tuple[T | PotluckError, int]] = {}
        self._bytes = 0
        self._over: PotluckError | None = None
        self._changed = chores.changed if chores is not None else threading.Condition()
        self._wanted: Sequence[Sequence[K]] = ()  # what is waited for: all of one of these

    def put(self, key: K, letter: T, size_bytes: int) -> None:
        """Raises ProtocolError for a key whose letter is still here, or where there is no room;
        a letter that comes after `abandon` is thrown away.
        """
        with self._changed:
            if self._over is not None:
                return
            if key in self._letters:
                raise ProtocolError("the same part of a step came twice")
            if len(self._letters) >= self._max_letters or (
                self._bytes + size_bytes > self._max_bytes
            ):
                raise ProtocolError(
                    f"more than {self._max_letters} parts of steps or {self._max_bytes} bytes "
                    "came that nobody waits for"
                )
            self._letters[key] = (letter, size_bytes)
            self._bytes += size_bytes
            if self._found(self._wanted) is not None:
                self._changed.notify_all()

    def fail(self, key: K, error: PotluckError) -> None:
        """Whoever takes this letter gets the error instead."""
        with self._changed:
            if self._over is None:
                self._remove(key)
                self._letters[key] = (error, 0)
                self._changed.notify_all()

    def wait(self, wanted: Sequence[Sequence[K]], timeout_s: float, end: K | None = None) -> int:
        """Until all letters of one of these lists are here; which one, the first where there are
        several. It wakes for nothing less. Raises as `take` does.
        """
        with self._changed:
            return self._await(wanted, timeout_s, end)

    def take(self, key: K, timeout_s: float, end: K | None = None) -> T:
        """Waits in the worker's thread until the letter is here. Raises what `abandon` or `fail`
        was called with, for this letter or for one called `end`, which is left here; and
        GenerationFailed when the time is over.
        """
        with self._changed:
            self._await([[key]], timeout_s, end)
            letter, size_bytes = self._letters.pop(key)
            self._bytes -= size_bytes
        if isinstance(letter, PotluckError):
            raise letter
        return letter

    def discard(self, is_over: Callable[[K], bool]) -> None:
        """Throws away letters that nobody will take any more."""
        with self._changed:
            for key in [key for key in self._letters if is_over(key)]:
                self._remove(key)

    def abandon(self, error: PotluckError) -> None:
        """Every `take`, under way or later, raises this. What lies here is gone."""
        with self._changed:
            self._over = error
            self._letters.clear()
            self._bytes = 0
            self._changed.notify_all()

    def _await(self, wanted: Sequence[Sequence[K]], timeout_s: float, end: K | None) -> int:
        deadline_s = time.monotonic() + timeout_s
        self._check(end)
        while (found := self._found(wanted)) is None:
            self._wanted = wanted
            try:
                self._wait(deadline_s, timeout_s)
            finally:
                self._wanted = ()
            self._check(end)
        return found

    def _found(self, wanted: Sequence[Sequence[K]]) -> int | None:
        """Which of these lists is here."""
        for index, keys in enumerate(wanted):
            if all(key in self._letters for key in keys):
                return index
        return None

    def _wait(self, deadline_s: float, timeout_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise GenerationFailed(
                f"a device of the plan sent nothing for {timeout_s:g} s; it may be too "
                "slow or stuck: leave it out, or start it anew"
            )
        if self._chores is None or not self._chores.waiting:
            started_s = time.perf_counter()
            if self._chores is not None:
                self._chores.is_idle = True
            self._changed.wait(left_s)
            if self._chores is not None:
                self._chores.is_idle = False
                self._chores.waited_s += time.perf_counter() - started_s
            return
        self._changed.release()
        try:
            self._chores.work()
        finally:
            self._changed.acquire()

    def _check(self, end: K | None) -> None:
        """Raises what this mailbox, or the letter `end`, is over with."""
        if self._over is not None:
            raise self._over
        letter = None if end is None else self._letters.get(end)
        if letter is not None and isinstance(letter[0], PotluckError):
            raise letter[0]

    def _remove(self, key: K) -> None:
        _, size_bytes = self._letters.pop(key, (None, 0))
        self._bytes -= size_bytes
