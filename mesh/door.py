"""Where links come from: those who knock here, and the addresses we knock at."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mesh.control_links import ControlLinks
from mesh.errors import DialRefused, LinkError, NotOfThisMesh, ProtocolError
from mesh.hints import Target
from mesh.ids import Address
from mesh.limits import HELLO_TIMEOUT_S, MAX_CANDIDATES
from mesh.nursery import Nursery
from mesh.transport import Channel, Transport

_log = logging.getLogger(__name__)


class Door:
    """`on_refused(address)`: nobody listens there. `on_stranger(address, reason)`: somebody does
    whom we cannot link with; told once for each reason.
    """

    def __init__(
        self,
        transport: Transport,
        links: ControlLinks,
        nursery: Nursery,
        on_refused: Callable[[Address], None],
        on_stranger: Callable[[Address, str], None],
    ) -> None:
        self._transport = transport
        self._links = links
        self._nursery = nursery
        self._on_refused = on_refused
        self._on_stranger = on_stranger
        self._opened = asyncio.Event()
        self._strangers: dict[Address, str] = {}

    async def listen(self) -> Address:
        """Who knocks from now on waits until `open`."""
        return await self._transport.listen(self._accept)

    def open(self) -> None:
        self._opened.set()

    async def close(self) -> None:
        await self._transport.close()

    async def attempt(self, target: Target) -> bool:
        """One dial, and the link it leads to until its end; False if there was none."""
        try:
            async with asyncio.timeout(target.patience_s):
                channel = await self._transport.dial(target.address)
            target.peer = channel.peer
            await self._links.serve(channel, target.patience_s)
        except DialRefused:
            self._on_refused(target.address)
            return False
        except (NotOfThisMesh, ProtocolError) as error:
            self._stranger(target.address, str(error))
            return False
        except (LinkError, TimeoutError):
            return False  # nobody there, or it went again: the next try comes after the back-off
        self._strangers.pop(target.address, None)
        return True

    async def _accept(self, channel: Channel) -> None:
        """Runs in a task of the transport, and stays in it as long as the channel lives."""
        task = self._nursery.start(self._welcome(channel))
        if task is None:
            await channel.close("this device is stopping")
        else:
            await asyncio.wait((task,))

    async def _welcome(self, channel: Channel) -> None:
        await self._opened.wait()
        try:
            await self._links.serve(channel, HELLO_TIMEOUT_S)
        except LinkError as error:
            _log.info("no link from %s: %s", channel.remote, error)
        except ProtocolError as error:
            self._stranger(Address(channel.remote.host, 0), str(error))  # its port means nothing

    def _stranger(self, address: Address, reason: str) -> None:
        if self._strangers.get(address) == reason:
            return
        if len(self._strangers) >= MAX_CANDIDATES:
            self._strangers.clear()
        self._strangers[address] = reason
        _log.warning("no link with %s: %s", address, reason)
        self._on_stranger(address, reason)
