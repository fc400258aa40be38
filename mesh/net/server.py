"""A device's one listening port: sockets are counted, timed and authenticated before they count.

A socket is unknown from accept until its websocket request has come through mutual TLS. Unknown
ones are few, short-lived and reach no handler; so whoever is not of this mesh can cost us little.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mesh.errors import NotOfThisMesh
from mesh.ids import Address, PeerId
from mesh.limits import (
    CLOSE_TIMEOUT_S,
    DEFAULT_PORT,
    MAX_LINKS_PER_PEER,
    MAX_REQUEST_LINE_BYTES,
    PROTOCOL_VERSION,
    REQUEST_TIMEOUT_S,
    TLS_HANDSHAKE_TIMEOUT_S,
)
from mesh.net.dialer import OWN_IDENTITY_STATUS, REASON_HEADER, VERSION_HEADER
from mesh.net.direct import DirectWebsocket
from mesh.net.sockets import Gate, ListeningSocket, open_sockets
from mesh.net.websocket import Websocket
from mesh.trust import MeshTrust

Handler = Callable[[Any], Awaitable[None]]  # of a Websocket, or a DirectWebsocket
OnRefused = Callable[[str, str], None]

_ACCEPT_PAUSE_S = 0.1  # after accept failed, as it does when the process has no descriptor left


@dataclass(frozen=True, slots=True)
class _Route:
    handler: Handler
    max_bytes: int
    admit: Callable[[PeerId], bool]
    direct: bool


class WebsocketServer:
    """Routes authenticated websockets to handlers.

    `trust` may be replaced: handshakes from then on use the new one. `on_refused(host, reason)` is
    called for each socket that did not get through.
    """

    def __init__(
        self,
        trust: MeshTrust,
        hosts: Sequence[str],
        port: int = DEFAULT_PORT,
        *,
        handshake_timeout_s: float = TLS_HANDSHAKE_TIMEOUT_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        protocol: int = PROTOCOL_VERSION,
        on_refused: OnRefused = lambda host, reason: None,
    ) -> None:
        self.trust = trust
        self.on_refused = on_refused
        self.addresses: tuple[Address, ...] = ()
        self._hosts = tuple(hosts)
        self._port = port
        self._handshake_timeout_s = handshake_timeout_s
        self._request_timeout_s = request_timeout_s
        self._protocol = protocol
        self._routes: dict[str, _Route] = {}
        self._gate = Gate()
        self._sockets: tuple[ListeningSocket, ...] = ()
        self._waiting: dict[object, asyncio.Event] = {}  # TLS is done, the request is not here yet
        self._open: dict[Websocket | DirectWebsocket, PeerId] = {}
        self._http: web.Server | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        """The first of the addresses it listens at."""
        assert self.addresses, "the server has not started"
        return self.addresses[0]

    @property
    def unknown_sockets(self) -> int:
        return self._gate.count

    def route(
        self,
        name: str,
        handler: Handler,
        *,
        max_bytes: int,
        admit: Callable[[PeerId], bool] = lambda peer: True,
        direct: bool = False,
    ) -> None:
        """`handler` runs in a task per websocket, which is closed when it returns. `direct` is for
        many large messages; then whoever dialled speaks first.
        """
        self._routes[name] = _Route(handler, max_bytes, admit, direct)

    async def start(self) -> Address:
        """Binds every host to one port; raises ConfigError if it is taken."""
        self._sockets, self.addresses = open_sockets(self._hosts, self._port)
        self._http = web.Server(
            self._answer,
            access_log=None,
            keepalive_timeout=0,
            lingering_time=0,
            max_line_size=MAX_REQUEST_LINE_BYTES,
            max_field_size=MAX_REQUEST_LINE_BYTES,
        )
        # Not in a TaskGroup: it lives from start() to close(), which ends it and waits for it.
        self._listening = asyncio.create_task(self._accept_all())
        return self.address

    async def close(self) -> None:
        """Stops listening and closes every websocket."""
        if self._listening is None or self._http is None:
            return
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        self._listening = None
        for listening in self._sockets:
            listening.close()
        async with asyncio.TaskGroup() as tasks:
            for websocket in list(self._open):
                tasks.create_task(websocket.close("the device is stopping"))
        self._http.pre_shutdown()
        await self._http.shutdown(CLOSE_TIMEOUT_S)

    async def _accept_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for listening in self._sockets:
                tasks.create_task(self._accept(listening, tasks))

    async def _accept(self, listening: ListeningSocket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, remote = await loop.sock_accept(listening)
            except OSError as error:
                self.on_refused("", f"accept failed: {error.strerror}")
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            host = str(remote[0])
            if self._gate.enter(host):
                tasks.create_task(self._welcome(listening, connection, host))
            else:
                listening.arriving.discard(connection)
                connection.close()
                self.on_refused(host, "too many connections that have not said who they are")

    async def _welcome(
        self, listening: ListeningSocket, connection: socket.socket, host: str
    ) -> None:
        """Sees one unknown socket through handshake and request, or ends it."""
        assert self._http is not None
        listening.arriving.discard(connection)
        loop = asyncio.get_running_loop()
        transport = None
        try:
            transport, _ = await loop.connect_accepted_socket(
                self._http,
                connection,
                ssl=self.trust.server_context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
            )
            self.trust.peer_of(transport.get_extra_info("ssl_object"))
            async with asyncio.timeout(self._request_timeout_s):
                await self._requested(transport).wait()
        except (OSError, NotOfThisMesh) as error:  # timeouts and TLS errors are OSErrors
            if transport is not None:
                transport.abort()
            self.on_refused(host, _why(error))
        finally:
            self._waiting.pop(transport, None)
            self._gate.leave(host)

    def _requested(self, transport: object) -> asyncio.Event:
        """Set when the websocket request has come on this transport, or it is gone."""
        return self._waiting.setdefault(transport, asyncio.Event())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One authenticated request: a websocket for its route, or a refusal with its reason."""
        transport, trust = request.transport, self.trust
        if transport is None:
            return web.Response(status=400)
        try:
            peer = trust.peer_of(transport.get_extra_info("ssl_object"))
        except NotOfThisMesh as error:
            return self._refuse(403, str(error))
        self._requested(transport).set()
        version, _, name = request.path.removeprefix("/v").partition("/")
        if version != str(self._protocol):
            return self._refuse(426, f"protocol {self._protocol} is spoken here")
        route = self._routes.get(name)
        if route is None:
            return self._refuse(404, "no such route")
        if peer == self.trust.peer:
            return self._refuse(OWN_IDENTITY_STATUS, "this is the calling device itself")
        if not route.admit(peer):
            return self._refuse(403, "this device does not know the caller yet")
        if sum(other == peer for other in self._open.values()) >= MAX_LINKS_PER_PEER:
            return self._refuse(429, f"at most {MAX_LINKS_PER_PEER} links per device")
        return await self._serve(request, route, peer, trust)

    async def _serve(
        self, request: web.BaseRequest, route: _Route, peer: PeerId, trust: MeshTrust
    ) -> web.StreamResponse:
        raw = web.WebSocketResponse(
            compress=False,
            autoping=False,
            timeout=CLOSE_TIMEOUT_S,
            max_msg_size=route.max_bytes + 1,  # aiohttp takes what is smaller than this
        )
        raw.headers[VERSION_HEADER] = str(self._protocol)
        await raw.prepare(request)
        assert request.transport is not None
        host, port = request.transport.get_extra_info("peername")[:2]
        remote = Address(host, port)
        websocket: Websocket | DirectWebsocket
        if route.direct:
            websocket = DirectWebsocket(
                request.transport, peer, remote, dialled=False, max_bytes=route.max_bytes
            )
        else:
            websocket = Websocket(raw, peer, remote, dialled=False)
        self._open[websocket] = peer
        trust.opened(websocket)
        try:
            await route.handler(websocket)
        finally:
            del self._open[websocket]
            await websocket.close("done")
        return raw

    def _refuse(self, status: int, reason: str) -> web.Response:
        headers = {VERSION_HEADER: str(self._protocol), REASON_HEADER: reason}
        response = web.Response(status=status, text=reason, headers=headers)
        response.force_close()
        return response


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).replace("_", " ").lower()
        return f"the TLS handshake failed ({reason}): another mesh, or not a device of ours"
    if isinstance(error, TimeoutError):
        return "it was silent for too long before it said who it is"
    return str(error) or type(error).__name__
