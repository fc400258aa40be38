"""A websocket for many large messages: aiohttp opens the connection, then nothing stands between
the socket and who uses it.

What an asyncio stream or aiohttp's reader does for each piece that arrives costs a small device as
much as computing with it: a buffer of 256 KiB for every 16 KiB that TLS decrypts, and a wake for
whatever has trickled in. Here all goes through one buffer, and the kernel wakes us when a message
is nearly whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from aiohttp import WSCloseCode

from mesh.errors import ProtocolError
from mesh.ids import Address, PeerId
from mesh.limits import CLOSE_TIMEOUT_S, KIB, MAX_WAITING_MESSAGES
from mesh.net.ending import BadMessage, Ending
from mesh.net.framing import Closed, Opcode, Reader, TooLarge, closing, head, masked

BUFFER_BYTES: Final = 256 * KIB  # as much as asyncio takes out of a socket at once
_RECORD_BYTES: Final = 16 * KIB  # of TLS: a part of one may have been taken out already
_WORTH_WAITING: Final = 32 * KIB  # of a message that are missing: for less, any byte wakes us


class DirectWebsocket(Ending, asyncio.BufferedProtocol):
    """Whole binary messages to and from one peer. Must be made where nothing has come yet."""

    def __init__(
        self,
        transport: asyncio.Transport,
        peer: PeerId,
        remote: Address,
        *,
        dialled: bool,
        max_bytes: int,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the connection over; who had it still hears of its end, and is then released."""
        super().__init__(peer, remote, transport.get_extra_info("socket"), dialled=dialled)
        self._transport = transport
        self._before = transport.get_protocol()
        self._release = release
        self._reader = Reader(max_bytes, is_masked=not dialled)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._is_bad = False
        self._is_paused = False  # nothing is read until somebody takes what is there
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytearray], None] | None = None  # while somebody takes each message
        self._writable, self._lost = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._wakes_at = 1  # so many bytes in the socket
        transport.set_protocol(self)

    @property
    def is_free(self) -> bool:
        """Whether the socket takes more: `send` would not wait."""
        return self._writable.is_set()

    def write(self, data: bytes | memoryview) -> None:
        """As `send`, but never waits: what the socket does not take yet stays in memory."""
        if self._closed.is_set():
            raise self._ended()
        self._write(Opcode.BINARY, data)

    async def send(self, data: bytes | memoryview) -> None:
        """Written at once and in order; returns when the socket takes more. Raises LinkClosed.

        The memory must not be written to afterwards: what the socket does not take is not copied.
        """
        self.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self._closed.is_set():
                raise self._ended()

    async def receive(self) -> bytearray:
        """The next message; raises LinkClosed at the end, BadMessage for what is none of ours."""
        messages = self._reader.messages
        while not messages:
            if self._closed.is_set():
                raise BadMessage(self._in_words()) if self._is_bad else self._ended()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = messages.popleft()
        if self._is_paused and len(messages) <= MAX_WAITING_MESSAGES // 2:
            self._is_paused = False
            self._transport.resume_reading()
        return message

    async def each(self, take: Callable[[bytearray], None]) -> NoReturn:
        """Calls `take` with every message where it arrives: a task would be woken for each else.

        Raises as `receive` does, and what `take` raises.
        """
        self._take = take
        try:
            while True:
                take(await self.receive())  # what had come before, or none and its end
        finally:
            self._take = None

    async def close(self, reason: str, code: int = WSCloseCode.OK) -> None:
        """Wakes a waiting `receive` at once; the other side learns the reason if it still listens.

        Takes at most CLOSE_TIMEOUT_S; may be called twice.
        """
        if self._closed.is_set():
            return
        self._forget()
        self._end(reason)
        self._say_goodbye(reason, code)
        await self._lost.wait()

    def abort(self, reason: str) -> None:
        self._forget()
        super().abort(reason)

    # --- what asyncio calls -----------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_bad:
            return
        reader = self._reader
        try:
            reader.feed(self._buffer[:nbytes])
        except ProtocolError as error:
            self._refuse(error)
            return
        if reader.closed is not None:
            self._on_close(reader.closed)
        elif self._closed.is_set():
            reader.messages.clear()
        elif reader.messages and not self._hand_over():
            self._wake()
            if len(reader.messages) > MAX_WAITING_MESSAGES and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        self._wake_at(reader.missing_bytes)

    def eof_received(self) -> None:
        """asyncio closes the connection then."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection broke ({exc})" if exc else "the connection broke")
        self._lost.set()
        self._writable.set()
        self._before.connection_lost(exc)
        self._release()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- the rest ---------------------------------------------------------------------------------

    def _write(self, opcode: Opcode, data: bytes | memoryview) -> None:
        if self._dialled:
            self._transport.write(masked(opcode, data))
        else:  # in one go: two writes would be two records, and two wakes at the other end
            self._transport.writelines((head(opcode, len(data)), data))

    def _on_close(self, said: Closed) -> None:
        """The other side closes, or answers that this one does."""
        if not self._closed.is_set():
            self._end(f"the other side closed it: {said.reason or f'code {said.code}'}")
            self._say_goodbye("", WSCloseCode.OK)
        self._transport.close()

    def _refuse(self, error: ProtocolError) -> None:
        """What came is no message of ours: whoever waits for one is told so."""
        self._is_bad = True
        reason = f"the other side sent no message of ours ({error})"
        self._end(reason)
        too_large = isinstance(error, TooLarge)
        code = WSCloseCode.MESSAGE_TOO_BIG if too_large else WSCloseCode.UNSUPPORTED_DATA
        self._say_goodbye(reason, code)

    def _say_goodbye(self, reason: str, code: int) -> None:
        """The other side answers and closes the connection, or is cut off."""
        if not self._lost.is_set():
            self._write(Opcode.CLOSE, closing(code, reason))
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._cut)

    def _hand_over(self) -> bool:
        """Whether somebody takes each message, who gets what is there."""
        take, waiter, messages = self._take, self._waiter, self._reader.messages
        if take is None or waiter is None or waiter.done():
            return False
        try:
            while messages and self._take is take and not self._closed.is_set():
                take(messages.popleft())
        except Exception as error:  # to whoever waits in `each`, and not to asyncio
            self._take = None
            waiter.set_exception(error)
        return True

    def _forget(self) -> None:
        """Nobody takes what has come."""
        self._reader.messages.clear()
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _cut(self) -> None:
        self._transport.abort()

    def _end(self, reason: str) -> None:
        super()._end(reason)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_at(self, missing_bytes: int) -> None:
        """Has the kernel wake us when so much of a message is there, less what of a TLS record may
        be waiting in this process. Measured on Linux alone, and asked for nowhere else.
        """
        least = missing_bytes - _RECORD_BYTES if missing_bytes > _WORTH_WAITING else 1
        if least != self._wakes_at and self._socket is not None and sys.platform == "linux":
            self._wakes_at = least
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
