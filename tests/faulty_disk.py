"""A disk that refuses: each call that changes it is counted, and from a chosen one on they fail."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Full; mounted read-only after an error; a worn-out SD card.
FAULTS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO}
_OS_CALLS = ("open", "fsync", "replace", "pwrite", "mkdir", "write", "ftruncate", "unlink")
_FILE_CALLS = ("write", "flush", "truncate")


class FaultyDisk:
    """Patched over `os` and `io.open`. With `fail_at` None it only counts."""

    def __init__(self, fail_at: int | None = None, number: int = errno.EIO, *, once: bool) -> None:
        self.calls = 0
        self._fail_at = fail_at
        self._number = number
        self._once = once

    def check(self) -> None:
        """Before each call that changes the disk."""
        self.calls += 1
        if self._fail_at is None or self.calls <= self._fail_at:
            return
        if not self._once or self.calls == self._fail_at + 1:
            raise OSError(self._number, os.strerror(self._number))

    @contextmanager
    def mounted(self) -> Iterator[FaultyDisk]:
        with pytest.MonkeyPatch.context() as patch:
            for name in _OS_CALLS:
                patch.setattr(os, name, self._checked(name, getattr(os, name)))
            patch.setattr(io, "open", self._open(io.open))
            yield self

    def _checked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            reads = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            if not reads:
                self.check()
            return real(*args, **options)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            opened = real(file, mode, *args, **options)
            if not set(mode) & set("wax+"):
                return opened
            try:
                self.check()
            except OSError:
                opened.close()
                raise
            return _Watched(opened, self)

        return call


class _Watched:
    """An open file whose writes may fail. What was not flushed is on no disk."""

    def __init__(self, opened: Any, disk: FaultyDisk) -> None:
        self._opened = opened
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._opened, name)
        if name not in _FILE_CALLS:
            return found

        def call(*args: Any) -> Any:
            self._disk.check()
            return found(*args)

        return call

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def faults(action: Callable[[], object]) -> list[FaultyDisk]:
    """A faulty disk for every call of `action` that changes the disk, and every way to fail: for
    good from there on, or once. `action` is run once to count them.
    """
    with FaultyDisk(once=False).mounted() as counting:
        action()
    assert counting.calls, "it writes nothing"
    return [
        FaultyDisk(fail_at, number, once=once)
        for fail_at in range(counting.calls)
        for number in FAULTS.values()
        for once in (False, True)
    ]


def folder_contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path within the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
