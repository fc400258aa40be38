"""The real `Transport`: control messages over the device's websocket server and dialer."""

from __future__ import annotations

from mesh.ids import Address
from mesh.limits import MAX_CONTROL_BYTES
from mesh.net.dialer import Dialer
from mesh.net.server import WebsocketServer
from mesh.net.websocket import Websocket
from mesh.transport import Accept

CONTROL_ROUTE = "control"


class ControlTransport:
    """Closing it closes the server, with its other routes, and the dialer."""

    def __init__(self, server: WebsocketServer, dialer: Dialer) -> None:
        self._server = server
        self._dialer = dialer

    @property
    def address(self) -> Address:
        """Where this device listens; the first, where it listens at several."""
        return self._server.address

    async def listen(self, accept: Accept) -> Address:
        """Raises ConfigError if the port is taken. A channel outlives its `accept`."""

        async def open_until_closed(channel: Websocket) -> None:
            await accept(channel)
            await channel.wait_closed()

        self._server.route(CONTROL_ROUTE, open_until_closed, max_bytes=MAX_CONTROL_BYTES)
        return await self._server.start()

    async def dial(self, address: Address) -> Websocket:
        return await self._dialer.dial(address, CONTROL_ROUTE, max_bytes=MAX_CONTROL_BYTES)

    async def close(self) -> None:
        await self._server.close()
        await self._dialer.close()
