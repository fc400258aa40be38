"""The acknowledger: tells whoever sends frames, over one connection, which have been handled."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from mesh.errors import LinkClosed
from mesh.limits import ACK_DELAY_S
from mesh.net.receive_stream import ReceiveStream
from mesh.transport import Line


class Acknowledger:
    """One acknowledgement for all frames handled since the last; none after `with`."""

    def __init__(self, line: Line, stream: ReceiveStream) -> None:
        self._line = line
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._forget()

    def handled(self) -> None:
        """The reader of the connection is done with a frame."""
        if self._stream.is_due:
            self._acknowledge()
        elif self._later is None:
            self._later = self._loop.call_later(ACK_DELAY_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._forget()
        if not self._line.is_free:  # who sends and does not read gets no pile of them
            self._later = self._loop.call_later(ACK_DELAY_S, self._acknowledge)
            return
        with contextlib.suppress(LinkClosed):  # the reader sees the same end, and says why
            self._line.write(self._stream.acknowledgement(self._loop.time()))

    def _forget(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
