"""One authenticated websocket, seen alike from the side that dialled and the side that accepted.

It is the `Channel` of the control messages, and what tensor links are made of. Compression, pings
and automatic answers are off: liveness is known from our own heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMessage, WSMsgType
from aiohttp.client_exceptions import ClientError
from aiohttp.http_websocket import WebSocketError
from aiohttp.web import WebSocketResponse

from mesh.ids import Address, PeerId
from mesh.limits import CLOSE_TIMEOUT_S
from mesh.net.ending import BadMessage, Ending
from mesh.net.framing import reason_bytes


class Websocket(Ending):
    """Whole binary messages to and from one peer."""

    def __init__(
        self,
        raw: WebSocketResponse | ClientWebSocketResponse,
        peer: PeerId,
        remote: Address,
        *,
        dialled: bool,
    ) -> None:
        super().__init__(peer, remote, raw.get_extra_info("socket"), dialled=dialled)
        self._raw = raw

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
        try:
            with contextlib.suppress(TimeoutError, ClientError, OSError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._raw.close(code=code, message=reason_bytes(reason))
        finally:
            self._cut()

    async def _refused(self, message: WSMessage) -> BadMessage:
        """A message too large, a broken frame, or text: aiohttp has closed it, or we do."""
        what = str(message.data) if message.type is WSMsgType.ERROR else message.type.name.lower()
        reason = f"the other side sent no message of ours ({what})"
        await self.close(reason, code=WSCloseCode.UNSUPPORTED_DATA)
        return BadMessage(self._in_words())
