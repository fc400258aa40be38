"""Opening a websocket as aiohttp does, but for somebody else to use: see `mesh.net.direct`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import Mapping
from secrets import token_bytes
from typing import Any, Final

import aiohttp
from aiohttp import hdrs
from yarl import URL

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_KEY_BYTES: Final = 16
_SWITCHED: Final = 101


class Upgraded:
    """A connection that is a websocket from here on."""

    def __init__(self, response: aiohttp.ClientResponse, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._response = response

    def get_extra_info(self, name: str) -> Any:
        """As a transport's."""
        return self.transport.get_extra_info(name)

    async def close(self) -> None:
        self.release()

    def release(self) -> None:
        """Nobody needs the connection any more."""
        self._response.close()


async def upgrade(
    session: aiohttp.ClientSession, url: URL, context: ssl.SSLContext, headers: Mapping[str, str]
) -> Upgraded:
    """Raises what a request raises, and WSServerHandshakeError for any other answer."""
    key = base64.b64encode(token_bytes(_KEY_BYTES))
    wanted = {
        **headers,
        hdrs.UPGRADE: "websocket",
        hdrs.CONNECTION: "Upgrade",
        hdrs.SEC_WEBSOCKET_VERSION: "13",
        hdrs.SEC_WEBSOCKET_KEY: key.decode(),
    }
    response = await session.get(url, ssl=context, headers=wanted, read_until_eof=False)
    accepted = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
    is_right = response.headers.get(hdrs.SEC_WEBSOCKET_ACCEPT) == accepted
    transport = response.connection.transport if response.connection is not None else None
    if response.status == _SWITCHED and is_right and transport is not None:
        return Upgraded(response, transport)
    response.close()
    raise aiohttp.WSServerHandshakeError(
        response.request_info,
        response.history,
        message="it agreed to no websocket",
        status=response.status,
        headers=response.headers,
    )
