"""Questions between nodes: handlers by topic here, and the answers we wait for from there."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from math import inf
from typing import Any

from mesh.errors import DialTimeout, LinkClosed, PotluckError, ProtocolError, RequestFailed
from mesh.ids import PeerId
from mesh.limits import MAX_REQUESTS_PER_PEER
from mesh.messages import Notice, Reply, Request, encode_message

RequestHandler = Callable[[PeerId, Any], Awaitable[Any]]
NoticeHandler = Callable[[PeerId, Any], Awaitable[None]]
Send = Callable[[PeerId, bytes], Coroutine[Any, Any, None]]
SendBack = Callable[[bytes], Coroutine[Any, Any, None]]

_log = logging.getLogger(__name__)


class Requests:
    """`send` brings bytes to a peer, or raises LinkClosed if the peer is gone."""

    def __init__(self, me: PeerId, send: Send) -> None:
        self._me = me
        self._send = send
        self._request_handlers: dict[str, RequestHandler] = {}
        self._notice_handlers: dict[str, NoticeHandler] = {}
        # Whom we asked, when, and where the answer goes.
        self._waiting: dict[int, tuple[PeerId, float, asyncio.Future[Reply]]] = {}
        self._last_number = 0
        self._running: Counter[PeerId] = Counter()

    def on_request(self, topic: str, handler: RequestHandler) -> None:
        self._request_handlers[topic] = handler

    def on_notice(self, topic: str, handler: NoticeHandler) -> None:
        self._notice_handlers[topic] = handler

    async def ask(self, peer: PeerId, topic: str, body: Any, timeout_s: float) -> Any:
        """Raises RequestFailed, LinkClosed or DialTimeout."""
        self._last_number += 1
        request = Request(self._last_number, topic, body)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                reply = await self._exchange(peer, request)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DialTimeout(f"{peer.short} did not answer {topic!r} in {timeout_s} s") from None
        if reply.error is not None:
            raise RequestFailed(reply.error)
        return reply.body

    async def tell(self, peer: PeerId, topic: str, body: Any) -> None:
        """Raises LinkClosed; returns once the notice is in the outbox."""
        notice = Notice(topic, body)
        if peer == self._me:
            await self.take_notice(peer, notice)
        else:
            await self._send(peer, encode_message(notice))

    async def serve(self, peer: PeerId, request: Request, send_back: SendBack) -> None:
        """Runs the handler of one request from afar and sends its reply back."""
        if self._running[peer] >= MAX_REQUESTS_PER_PEER:
            text = f"busy with {MAX_REQUESTS_PER_PEER} requests of yours; ask again later"
            reply = Reply(request.number, text, None)
        else:
            self._running[peer] += 1
            try:
                reply = await self._answer(peer, request)
            finally:
                self._running[peer] -= 1
        try:
            data = encode_message(reply)
        except (ProtocolError, TypeError, ValueError, OverflowError) as error:
            _log.exception("the reply to %r cannot be sent", request.topic)
            data = encode_message(Reply(request.number, f"its reply cannot be sent: {error}", None))
        with suppress(LinkClosed):  # nobody is left to hear it, and the asker knows of the break
            await send_back(data)

    async def take_notice(self, peer: PeerId, notice: Notice) -> None:
        handler = self._notice_handlers.get(notice.topic)
        if handler is None:
            _log.info("nobody here listens to notices on %r", notice.topic)
            return
        try:
            await handler(peer, notice.body)
        except PotluckError as error:
            _log.warning("a notice of %s on %r: %s", peer.short, notice.topic, error)
        except Exception:  # a handler's bug must not take the node down; it is logged in full
            _log.exception("the handler of notices on %r failed", notice.topic)

    def take_reply(self, peer: PeerId, reply: Reply) -> None:
        """Hands it to whoever waits; an answer that nobody waits for any more is dropped."""
        asked, _, future = self._waiting.get(reply.number, (None, 0.0, None))
        if asked == peer and future is not None and not future.done():
            future.set_result(reply)

    def is_busy_with(self, peer: PeerId) -> bool:
        """Whether a question is open, of ours or of the peer's."""
        asked = any(other == peer for other, _, _ in self._waiting.values())
        return asked or self._running[peer] > 0

    def fail(self, peer: PeerId, reason: str, before_s: float = inf) -> None:
        """Nothing will come any more of what this process of `peer` was asked, before then."""
        for asked, since_s, future in self._waiting.values():
            if asked == peer and since_s < before_s and not future.done():
                future.set_exception(LinkClosed(reason))

    def fail_all(self, reason: str) -> None:
        for peer in {peer for peer, _, _ in self._waiting.values()}:
            self.fail(peer, reason)

    async def _exchange(self, peer: PeerId, request: Request) -> Reply:
        if peer == self._me:
            return await self._answer(peer, request)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        data = encode_message(request)
        self._waiting[request.number] = (peer, loop.time(), future)
        try:
            await self._send(peer, data)
            return await future
        finally:
            del self._waiting[request.number]
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen, also where the sending raised first

    async def _answer(self, peer: PeerId, request: Request) -> Reply:
        handler = self._request_handlers.get(request.topic)
        if handler is None:
            text = f"nobody here answers requests on {request.topic!r}"
            return Reply(request.number, text, None)
        try:
            return Reply(request.number, None, await handler(peer, request.body))
        except PotluckError as error:
            return Reply(request.number, str(error) or type(error).__name__, None)
        except Exception as error:  # a handler's bug is answered, logged, and not our end
            _log.exception("the handler of requests on %r failed", request.topic)
            return Reply(request.number, f"internal error: {type(error).__name__}", None)
