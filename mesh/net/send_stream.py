"""A one-way run of tensor frames that survives its connections: nothing lost, nothing twice.
Here is the sender's half; `mesh.net.receive_stream` has the other.

The sender numbers its frames and keeps each until the receiver has acknowledged it. The receiver,
which has dialled, names the stream it knows and the number it wants next; the sender answers with a
start message, sends again what was not acknowledged, and goes on (`stream_messages`).

Acknowledgements wait for one another: each wakes both ends, which costs a small device more than
taking a frame out of the socket. What is measured of a link does not wait with them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh.errors import LinkClosed, ProtocolError
from mesh.ids import CHANCE, PeerId
from mesh.limits import FRAMES_IN_FLIGHT, HELLO_TIMEOUT_S
from mesh.net.stream_messages import (
    AGE,
    MAX_STREAM_MESSAGE_BYTES,
    MICROSECONDS,
    NUMBER,
    PREFIX_BYTES,
    START,
    STREAM_ID_BYTES,
)
from mesh.tensor_frame import FrameHeader, encode_header
from mesh.transport import Line

OnSent = Callable[[FrameHeader, float, float], None]


@dataclass(slots=True)
class SendCounts:
    """Of one peer, over all streams to it; bytes with headers and numbers, each frame once."""

    frames: int = 0
    size_bytes: int = 0
    resent: int = 0


class SendStream:
    """The sender's half: at most FRAMES_IN_FLIGHT frames are kept unacknowledged."""

    def __init__(
        self,
        peer: PeerId,
        counts: SendCounts,
        on_sent: OnSent = lambda header, since_s, seconds: None,
    ) -> None:
        """`on_sent` hears of each frame that was acknowledged, when it was sent in the loop's time,
        and for how many seconds the link was busy with it and with no frame before it.
        """
        self.peer = peer
        self._counts = counts
        self._on_sent = on_sent
        self._out: deque[tuple[FrameHeader, float]] = deque()  # what is kept, and since when
        self._free_s = 0.0  # when the last frame that is acknowledged had arrived
        self._id = CHANCE.get()(STREAM_ID_BYTES)
        self._kept: deque[memoryview] = deque()
        self._acknowledged = 0  # every frame with a lower number has arrived
        self._unsent = 0  # every frame with a lower number has been written to some connection
        self._serving: Line | None = None  # the receiver's newest connection
        self._websocket: Line | None = None  # the same, once nothing is left to send again
        self._changed = asyncio.Event()
        self._closed: str | None = None

    @property
    def attached(self) -> bool:
        """Whether the receiver has dialled and nothing is left to send again."""
        return self._websocket is not None

    @property
    def lost(self) -> bool:
        """Whether it is wanted and has no connection, not even a newer one."""
        return self._closed is None and self._serving is None

    async def put(self, header: FrameHeader, payload: memoryview) -> int:
        """Numbers a frame and sends it as soon as there is room and a receiver; its number.

        Copies the payload (joining it to its header costs a tenth of encrypting it), so its
        buffer is free again on return. Cancelled while it waits for room, it has done nothing.
        """
        message = self._message(header, payload)
        await self.until(lambda: len(self._kept) < FRAMES_IN_FLIGHT)
        number = self._next
        view = self._keep(header, message)
        if self._websocket is not None:
            self._unsent = number + 1
            # Broken or being cut: the frame is kept, and goes out again with the next connection.
            with contextlib.suppress(LinkClosed):
                await self._websocket.send(view)
        return number

    def put_now(self, header: FrameHeader, payload: memoryview) -> bool:
        """As `put`, where that would not wait; else False, and nothing is done."""
        websocket = self._websocket
        if websocket is None or not websocket.is_free or len(self._kept) >= FRAMES_IN_FLIGHT:
            return False
        number = self._next
        view = self._keep(header, self._message(header, payload))
        self._unsent = number + 1
        with contextlib.suppress(LinkClosed):  # as in `put`
            websocket.write(view)
        return True

    async def arrived(self, number: int) -> None:
        """Returns when the receiver has acknowledged this frame."""
        await self.until(lambda: self._acknowledged > number)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Waits for a condition on this stream; raises LinkClosed when it is closed."""
        while True:
            if self._closed is not None:
                raise LinkClosed(f"link to {self.peer.short}: {self._closed}")
            if happened():
                return
            await self._changed.wait()

    async def serve(self, websocket: Line) -> None:
        """Runs one connection of the receiver until it breaks; raises LinkClosed then.

        A newer connection replaces an older one: the receiver redials only when the old is lost.
        """
        if self._serving is not None:
            self._serving.abort("replaced by a newer link")
        self._serving, self._websocket = websocket, None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                resume = self._resume(await websocket.receive())
            self._acknowledge(resume)
            await websocket.send(START.pack(self._id, resume))
            await self._resend(websocket)
            await websocket.each(lambda data: self._acknowledge(*self._read(data)))
        except ProtocolError as error:
            await websocket.close(str(error))
            raise LinkClosed(str(error)) from None
        except TimeoutError:
            raise LinkClosed(f"{self.peer.short} did not say where to go on") from None
        finally:
            if self._serving is websocket:
                self._serving = self._websocket = None
                self._notify()

    async def close(self, reason: str) -> None:
        """Gives up: waiting and later calls raise LinkClosed."""
        self._closed = reason
        websocket, self._serving, self._websocket = self._serving, None, None
        self._notify()
        if websocket is not None:
            await websocket.close(reason)

    @property
    def _next(self) -> int:
        return self._acknowledged + len(self._kept)

    def _keep(self, header: FrameHeader, message: bytearray) -> memoryview:
        """Numbers a frame for which there is room; it is kept until it is acknowledged."""
        NUMBER.pack_into(message, 0, self._next)
        view = memoryview(message)  # should the socket take only a part, cutting it copies nothing
        self._kept.append(view)
        self._out.append((header, asyncio.get_running_loop().time()))
        self._counts.frames += 1
        self._counts.size_bytes += len(view)
        return view

    def _message(self, header: FrameHeader, payload: memoryview) -> bytearray:
        payload = payload.cast("B")
        if len(payload) != header.tile_bytes:
            raise ProtocolError(
                f"a tile [{header.tile_rows}, {header.width}] of {header.dtype.name} has "
                f"{header.tile_bytes} bytes; the payload has {len(payload)}"
            )
        message = bytearray().join((bytes(PREFIX_BYTES), encode_header(header), payload))
        if len(message) > MAX_STREAM_MESSAGE_BYTES:
            raise ProtocolError(
                f"frame of {len(message)} bytes; at most {MAX_STREAM_MESSAGE_BYTES}: cut the "
                "tensor into smaller tiles"
            )
        return message

    def _resume(self, wanted: bytes | bytearray) -> int:
        """Where to go on: where the receiver wants, if it speaks of this stream and what is kept;
        else at the oldest frame kept, since the receiver has started afresh.
        """
        if len(wanted) not in (0, START.size):
            raise ProtocolError(f"a resume message has {START.size} bytes; {len(wanted)} came")
        stream_id, number = START.unpack(wanted) if wanted else (b"", 0)
        if stream_id != self._id or not self._acknowledged <= number <= self._next:
            return self._acknowledged
        return int(number)

    async def _resend(self, websocket: Line) -> None:
        """Everything kept, in order; only then may `put` write to this connection itself."""
        number = self._acknowledged
        while number < self._next:
            self._counts.resent += number < self._unsent
            self._unsent = max(self._unsent, number + 1)
            await websocket.send(self._kept[number - self._acknowledged])
            number += 1
        if self._serving is websocket:
            self._websocket = websocket
            self._notify()

    def _read(self, data: bytes | bytearray) -> tuple[int, list[float]]:
        """The number of an acknowledgement, and the ages of the frames that it is for."""
        if len(data) < NUMBER.size:
            raise ProtocolError(f"an acknowledgement of {len(data)} bytes has no number")
        number: int = NUMBER.unpack_from(data)[0]
        if not self._acknowledged <= number <= self._next:
            raise ProtocolError(
                f"frames {self._acknowledged}..{self._next} are out; {number} was acknowledged"
            )
        count = number - self._acknowledged
        if len(data) != NUMBER.size + count * AGE.size:
            raise ProtocolError(
                f"{count} frames are acknowledged in {NUMBER.size + count * AGE.size} bytes; "
                f"{len(data)} came"
            )
        return number, [age / MICROSECONDS for (age,) in AGE.iter_unpack(data[NUMBER.size :])]

    def _acknowledge(self, number: int, ages_s: Sequence[float] = ()) -> None:
        """Everything below a number has arrived, each frame so long ago; by default just now."""
        now_s = asyncio.get_running_loop().time()
        for age_s in ages_s or (0.0,) * (number - self._acknowledged):
            self._kept.popleft()
            self._acknowledged += 1
            header, sent_s = self._out.popleft()
            began_s = max(sent_s, self._free_s)
            self._free_s = max(began_s, now_s - age_s)
            self._on_sent(header, sent_s, self._free_s - began_s)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
