"""One authenticated websocket, seen alike from the side that dialled and the side that accepted.

It is the `Channel` of the control messages, and what tensor links are made of. Compression, pings
and automatic answers are off: liveness is known from our own heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping

from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMessage, WSMsgType
from aiohttp.client_exceptions import ClientError
from aiohttp.http_websocket import WebSocketError
from aiohttp.web import WebSocketResponse

from mesh.errors import LinkClosed
from mesh.ids import Address, PeerId
from mesh.limits import CLOSE_TIMEOUT_S, MAX_CLOSE_REASON_BYTES


class BadMessage(LinkClosed):
    """The other side sent what no version of ours would send, so the link was closed."""


class Websocket:
    """Whole binary messages to and from one peer."""

    def __init__(
        self,
        raw: WebSocketResponse | ClientWebSocketResponse,
        peer: PeerId,
        remote: Address,
        *,
        dialled: bool,
        query: Mapping[str, str] | None = None,
    ) -> None:
        self.query = dict(query or {})  # of the request that opened it, on the accepting side
        self._raw = raw
        self._socket: socket.socket | None = raw.get_extra_info("socket")
        self._peer = peer
        self._remote = remote
        self._dialled = dialled
        self._closed = asyncio.Event()
        self._reason = ""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by its certificate."""
        return self._peer

    @property
    def remote(self) -> Address:
        """Where the other end is; its listening port only if this side dialled."""
        return self._remote

    @property
    def dialled(self) -> bool:
        """True on the side that opened the connection."""
        return self._dialled

    async def send(self, data: bytes | memoryview) -> None:
        """Written at once and in order; returns when the socket takes more. Raises LinkClosed."""
        if self._closed.is_set():
            raise self._ended()
        try:
            await self._raw.send_bytes(data)  # type: ignore[arg-type]  # takes memoryviews too
        except (ClientError, OSError) as error:
            self._end(f"the connection broke ({error})")
            raise self._ended() from None

    async def receive(self) -> bytes:
        """The next message; raises LinkClosed at the end, BadMessage for what is none of ours."""
        if self._closed.is_set():
            raise self._ended()
        message = await self._raw.receive()
        if message.type is WSMsgType.BINARY:
            data: bytes = message.data
            return data
        if message.type is WSMsgType.CLOSE:
            self._end(f"the other side closed it: {message.extra or f'code {message.data}'}")
        elif message.type in (WSMsgType.CLOSING, WSMsgType.CLOSED):
            self._end("the connection broke")
        elif message.type is WSMsgType.ERROR and not isinstance(message.data, WebSocketError):
            self._end(f"the connection broke ({message.data})")
        else:
            raise await self._refused(message)
        raise self._ended()

    async def close(self, reason: str, code: int = WSCloseCode.OK) -> None:
        """Wakes a waiting `receive` at once; the other side learns the reason if it still listens.

        Takes at most CLOSE_TIMEOUT_S; may be called twice.
        """
        if self._closed.is_set():
            return
        self._end(reason)
        text = reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore").encode()
        try:
            with contextlib.suppress(TimeoutError, ClientError, OSError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._raw.close(code=code, message=text)
        finally:
            self._cut()

    def abort(self, reason: str) -> None:
        """Ends the connection without a word to the other side."""
        self._end(reason)
        self._cut()

    async def wait_closed(self) -> str:
        """Returns, with the reason, when either side has closed or the connection broke."""
        await self._closed.wait()
        return self._reason

    async def _refused(self, message: WSMessage) -> BadMessage:
        """A message too large, a broken frame, or text: aiohttp has closed it, or we do."""
        what = str(message.data) if message.type is WSMsgType.ERROR else message.type.name.lower()
        reason = f"the other side sent no message of ours ({what})"
        await self.close(reason, code=WSCloseCode.UNSUPPORTED_DATA)
        return BadMessage(f"link with {self._peer.short} at {self._remote}: {self._reason}")

    def _end(self, reason: str) -> None:
        if not self._closed.is_set():
            self._reason = reason
            self._closed.set()

    def _ended(self) -> LinkClosed:
        return LinkClosed(f"link with {self._peer.short} at {self._remote}: {self._reason}")

    def _cut(self) -> None:
        """Whatever still waits on a peer that will not read again is freed by this."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
