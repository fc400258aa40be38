"""A person at a terminal: a command behind a pseudo-terminal, what it shows, what is typed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

DEADLINE_S = 30.0


class Terminal:
    """Blocks: its methods are for a thread where daemons are read in the loop."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apps.cli", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(slave)
        self._unread = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._master)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str) -> str:
        """What was shown up to and with `text`."""
        deadline_s = time.monotonic() + DEADLINE_S
        while text not in self._unread:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{text!r} did not come; shown was {self._unread!r}"
            if self._has_more(left_s):
                more = self._read()
                assert more, f"it ended before {text!r} came; shown was {self._unread!r}"
                self._unread += more
        shown, found, self._unread = self._unread.partition(text)
        return shown + found

    def end(self) -> int:
        """Waits for the command; its exit status."""
        while self._has_more(DEADLINE_S) and self._read():
            pass
        return self._process.wait(DEADLINE_S)

    def _has_more(self, timeout_s: float) -> bool:
        return bool(select.select([self._master], [], [], timeout_s)[0])

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode(errors="replace").replace("\r\n", "\n")
        except OSError:  # how Linux says that the other side has closed
            return ""
