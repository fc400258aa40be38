"""How a device calls another: TCP, mutual TLS, the websocket request; each failure in words."""

from __future__ import annotations

import asyncio
import errno
import ssl
from typing import Literal, overload

import aiohttp
from yarl import URL

from mesh.errors import (
    DialRefused,
    DialTimeout,
    LinkClosed,
    LinkError,
    MeshError,
    NotOfThisMesh,
    OwnIdentity,
    VersionMismatch,
)
from mesh.ids import Address, PeerId
from mesh.limits import CLOSE_TIMEOUT_S, DIAL_TIMEOUT_S, PROTOCOL_VERSION
from mesh.net.direct import DirectWebsocket
from mesh.net.upgrade import Upgraded, upgrade
from mesh.net.websocket import Websocket
from mesh.transport import Channel, Dials, Line
from mesh.trust import MeshTrust

VERSION_HEADER = "Potluck-Protocol"
REASON_HEADER = "Potluck-Reason"
OWN_IDENTITY_STATUS = 409  # the caller has the key of the device that answers


class Dialer:
    """`trust` may be replaced: dials from then on use the new one."""

    def __init__(
        self,
        trust: MeshTrust,
        *,
        timeout_s: float = DIAL_TIMEOUT_S,
        protocol: int = PROTOCOL_VERSION,
    ) -> None:
        self.trust = trust
        self._timeout_s = timeout_s
        self._protocol = protocol
        self._session: aiohttp.ClientSession | None = None

    @overload
    async def dial(
        self, address: Address, route: str, *, max_bytes: int, direct: Literal[False] = ...
    ) -> Websocket: ...

    @overload
    async def dial(
        self, address: Address, route: str, *, max_bytes: int, direct: Literal[True]
    ) -> DirectWebsocket: ...

    async def dial(
        self, address: Address, route: str, *, max_bytes: int, direct: bool = False
    ) -> Websocket | DirectWebsocket:
        """A websocket to whoever listens there, proved to be of this mesh, and not this device.
        `direct` is for many large messages; then this side speaks first.

        Raises DialRefused, DialTimeout, NotOfThisMesh, VersionMismatch, OwnIdentity, or LinkClosed
        when it hung up in the middle.
        """
        url = URL.build(
            scheme="https",
            host=address.host,
            port=address.port,
            path=f"/v{self._protocol}/{route}",
        )
        trust = self.trust  # it may be replaced while we dial
        try:
            async with asyncio.timeout(self._timeout_s):
                raw = await self._opened(url, trust, max_bytes, direct=direct)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _in_words(error, address, self._protocol, self._timeout_s) from None
        try:
            peer = trust.peer_of(raw.get_extra_info("ssl_object"))
        except NotOfThisMesh:
            await raw.close()
            raise
        websocket: Websocket | DirectWebsocket
        if isinstance(raw, Upgraded):
            websocket = DirectWebsocket(
                raw.transport,
                peer,
                address,
                dialled=True,
                max_bytes=max_bytes,
                release=raw.release,
            )
        else:
            websocket = Websocket(raw, peer, address, dialled=True)
        if peer == trust.peer:
            await websocket.close("dialled itself")
            raise _own_identity(address)
        trust.opened(websocket)
        return websocket

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _opened(
        self, url: URL, trust: MeshTrust, max_bytes: int, *, direct: bool
    ) -> aiohttp.ClientWebSocketResponse | Upgraded:
        headers = {VERSION_HEADER: str(self._protocol)}
        if direct:
            return await upgrade(self._open_session(), url, trust.client_context, headers)
        return await self._open_session().ws_connect(
            url,
            ssl=trust.client_context,
            headers=headers,
            compress=0,
            max_msg_size=max_bytes + 1,  # aiohttp takes what is smaller than this
            autoping=False,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
        )

    def _open_session(self) -> aiohttp.ClientSession:
        """Made at the first dial, since it belongs to the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            )
        return self._session


async def dial_peer(
    dialer: Dials, address: Address, route: str, peer: PeerId, *, max_bytes: int
) -> Line:
    """A line to a peer already known: another device at its address is a LinkError."""
    line = await dialer.dial(address, route, max_bytes=max_bytes, direct=True)
    await check_peer(line, address, peer)
    return line


async def check_peer(channel: Channel, address: Address, peer: PeerId) -> None:
    """Closes a channel that was dialled for another device, and raises LinkError."""
    if channel.peer != peer:
        await channel.close("dialled for another device")
        raise LinkError(f"{address} is now {channel.peer.short}, expected {peer.short}")


def _in_words(error: BaseException, address: Address, protocol: int, timeout_s: float) -> MeshError:
    match error:
        case aiohttp.WSServerHandshakeError():
            return _answered(error, address, protocol)
        case TimeoutError():
            return DialTimeout(
                f"{address} did not answer within {timeout_s:g} s; is the device on, and does a "
                "firewall let this port through?"
            )
        case aiohttp.ClientConnectorCertificateError():
            return NotOfThisMesh(
                f"{address} is of another mesh, or of none; "
                "`potluck invite` on a member shows the code to join"
            )
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return NotOfThisMesh(
                f"{address} does not speak as a device of a mesh (TLS: {_tls_reason(error)}); "
                "another program may listen on that port"
            )
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return DialRefused(
                f"nobody listens at {address}; is `potluck up` running there, on that port?"
            )
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, ConnectionError):
            return LinkClosed(f"{address} hung up during the handshake; it may be busy: try again")
        case aiohttp.ClientConnectorError():
            return DialTimeout(f"{address} cannot be reached: {error.os_error.strerror}")
    if isinstance(cause := error.__cause__ or error.__context__, ssl.SSLError):
        return NotOfThisMesh(f"{address} refuses this device (TLS: {_tls_reason(cause)})")
    return LinkClosed(
        f"{address} hung up before it answered ({type(error).__name__}); it may have refused this "
        "device's certificate, or be stopping"
    )


def _answered(error: aiohttp.WSServerHandshakeError, address: Address, protocol: int) -> MeshError:
    """The other side is of this mesh, and says no."""
    theirs = error.headers.get(VERSION_HEADER, "") if error.headers else ""
    if error.status == 426 and theirs.isascii() and theirs.isdigit():
        return VersionMismatch(
            f"{address} speaks protocol {theirs[:9]}, this device {protocol}; "
            "install the same version of Potluck on both"
        )
    if error.status == OWN_IDENTITY_STATUS:
        return _own_identity(address)
    reason = error.headers.get(REASON_HEADER, "") if error.headers else ""
    return LinkClosed(f"{address} refused the link: {reason[:200] or f'status {error.status}'}")


def _own_identity(address: Address) -> OwnIdentity:
    return OwnIdentity(f"{address} is this device itself, or one with a copy of its key")


def _tls_reason(error: BaseException) -> str:
    source = getattr(error, "os_error", error)
    return str(getattr(source, "reason", None) or source).replace("_", " ").lower()
