"""The door that stands open while a short code is shown, and the call of a newcomer at it.

It has a port of its own and knows nothing but the pairing talk: no route, frame or message of the
mesh can be reached through it. Sockets are few and timed, as at the mesh's own port.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence

from mesh.errors import (
    ConfigError,
    DialRefused,
    DialTimeout,
    NotOfThisMesh,
    PairingFailed,
    PotluckError,
)
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.limits import (
    CLOSE_TIMEOUT_S,
    DIAL_TIMEOUT_S,
    MAX_PAIRING_MESSAGE_BYTES,
    PAIRING_EXCHANGE_S,
    TLS_HANDSHAKE_TIMEOUT_S,
)
from mesh.net.pairing_talk import Handover, Talk, ask_in, let_in
from mesh.net.sockets import Gate, ListeningSocket, open_sockets
from mesh.pairing_window import PairingWindow
from mesh.trust import pairing_trust

_ACCEPT_PAUSE_S = 0.1  # after accept failed, as it does when the process has no descriptor left


class PairingDoor:
    """`give(peer, name)` returns what a newcomer gets once both sides have confirmed the code.
    `on_refused(host, reason)` hears of each one that did not get in.
    """

    def __init__(
        self,
        identity: Identity,
        window: PairingWindow,
        give: Callable[[PeerId, str], Handover],
        *,
        handshake_timeout_s: float = TLS_HANDSHAKE_TIMEOUT_S,
        on_refused: Callable[[str, str], None] = lambda host, reason: None,
    ) -> None:
        self.window = window
        self.addresses: tuple[Address, ...] = ()
        self._trust = pairing_trust(identity)
        self._give = give
        self._handshake_timeout_s = handshake_timeout_s
        self._on_refused = on_refused
        self._gate = Gate()
        self._sockets: tuple[ListeningSocket, ...] = ()
        self._shut = asyncio.Event()

    def open(self, hosts: Sequence[str], port: int) -> None:
        """Listens at this port, or at a free one where it is taken. Raises ConfigError."""
        try:
            self._sockets, self.addresses = open_sockets(hosts, port)
        except ConfigError:
            self._sockets, self.addresses = open_sockets(hosts, 0)

    def shut(self, reason: str) -> None:
        """Ends `run` and whatever is under way."""
        self.window.close(reason)
        self._shut.set()

    def expire(self) -> None:
        """Ends both when the time of the window has run out."""
        self.window.expire()
        self._shut.set()

    async def run(self) -> str:
        """Lets one newcomer in, or none; why the window closed."""
        expiry = asyncio.get_running_loop().call_at(self.window.until_s, self.expire)
        try:
            async with asyncio.TaskGroup() as tasks:
                accepting = tasks.create_task(self._accept_all())
                await self._shut.wait()
                accepting.cancel()
        finally:
            expiry.cancel()
            for listening in self._sockets:
                listening.close()
        assert self.window.closed is not None
        return self.window.closed

    async def _accept_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for listening in self._sockets:
                tasks.create_task(self._accept(listening, tasks))

    async def _accept(self, listening: ListeningSocket, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                connection, remote = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                self._on_refused("", f"accept failed: {error.strerror}")
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            host = str(remote[0])
            listening.arriving.discard(connection)
            if self._gate.enter(host):
                tasks.create_task(self._welcome(connection, host))
            else:
                connection.close()
                self._on_refused(host, "too many connections at the pairing port")

    async def _welcome(self, connection: socket.socket, host: str) -> None:
        """Sees one socket through handshake and talk, or ends it."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_PAIRING_MESSAGE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._trust.server_context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
            )
            peer = self._trust.peer_of(transport.get_extra_info("ssl_object"))
            talk = Talk(reader, asyncio.StreamWriter(transport, protocol, reader, loop), peer)
            await let_in(talk, self.window, self._trust.peer, self._give)
        except (OSError, PotluckError) as error:  # timeouts are OSErrors
            self._on_refused(host, str(error) or "it was silent for too long")
        finally:
            if transport is not None:
                transport.close()
            self._gate.leave(host)
            if self.window.over:
                self._shut.set()


async def call_at_door(
    identity: Identity, address: Address, code: str, name: str
) -> tuple[PeerId, Handover]:
    """A newcomer's whole pairing with the member whose door is at `address`: who it is, its gift.

    Raises PairingFailed in words, DialRefused where nobody listens and DialTimeout where nobody
    answers.
    """
    trust = pairing_trust(identity)
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                address.host,
                address.port,
                ssl=trust.client_context,
                server_hostname="",
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
                limit=MAX_PAIRING_MESSAGE_BYTES,
            )
    except ssl.SSLError:
        raise PairingFailed(
            f"{address} is no pairing port; `potluck invite` on a member shows the right one"
        ) from None
    except TimeoutError:
        raise DialTimeout(f"{address} did not answer within {DIAL_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise DialRefused(
            f"nobody lets devices in at {address} ({error.strerror}); is the code that `potluck "
            "invite` showed there still good?"
        ) from None
    try:
        peer = trust.peer_of(writer.get_extra_info("ssl_object"))
        return peer, await ask_in(Talk(reader, writer, peer), code, identity.peer, name)
    except NotOfThisMesh as error:
        raise PairingFailed(f"{address}: {error}") from None
    except TimeoutError:
        raise PairingFailed(
            f"{address} was silent for {PAIRING_EXCHANGE_S:g} s in the middle of it; try again"
        ) from None
    except OSError as error:
        raise PairingFailed(f"the connection to {address} broke ({error}); try again") from None
    finally:
        writer.close()
