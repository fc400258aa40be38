"""The acknowledger: tells whoever sends frames, over one connection, which have been handled."""

from __future__ import annotations

import asyncio
import contextlib

from mesh.errors import LinkClosed
from mesh.limits import ACK_DELAY_S
from mesh.net.stream import ReceiveStream
from mesh.transport import Line


class Acknowledger:
    """One acknowledgement for all frames handled since the last."""

    def __init__(self, websocket: Line, stream: ReceiveStream) -> None:
        self._websocket = websocket
        self._stream = stream
        self._came = asyncio.Event()  # there is something
        self._due = asyncio.Event()  # and it should go now

    def handled(self) -> None:
        """The reader of the connection is done with a frame."""
        self._came.set()
        if self._stream.is_due:
            self._due.set()

    async def run(self) -> None:
        """Until cancelled, or the connection ends."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                await self._came.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ACK_DELAY_S):
                        await self._due.wait()
                self._came.clear()
                self._due.clear()
                await self._websocket.send(self._stream.acknowledgement(clock()))
        except LinkClosed:
            return  # the reader sees the same end, and says why
