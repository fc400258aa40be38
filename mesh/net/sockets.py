"""Listening sockets, and the gate that counts those who have not yet said who they are."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mesh.errors import ConfigError
from mesh.ids import Address
from mesh.limits import MAX_UNKNOWN_SOCKETS, MAX_UNKNOWN_SOCKETS_PER_HOST

_BACKLOG = 128


class Gate:
    """Bounds the unknown sockets, in all and per host.

    Loopback has no bound of its own: a home of many devices emulated on one machine starts from a
    single address, and whoever is on this machine already is past any gate.
    """

    def __init__(self) -> None:
        self._inside: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._inside.total()

    def enter(self, host: str) -> bool:
        if self.count >= MAX_UNKNOWN_SOCKETS:
            return False
        if self._inside[host] >= MAX_UNKNOWN_SOCKETS_PER_HOST and not _is_loopback(host):
            return False
        self._inside[host] += 1
        return True

    def leave(self, host: str) -> None:
        self._inside[host] -= 1
        if self._inside[host] <= 0:
            del self._inside[host]


class ListeningSocket(socket.socket):
    """Remembers what it accepted until somebody has taken it over.

    `loop.sock_accept` drops a connection on the floor when it is cancelled at the wrong moment.
    """

    def __init__(self, family: socket.AddressFamily) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.arriving: set[socket.socket] = set()

    def accept(self) -> tuple[socket.socket, Any]:
        connection, remote = super().accept()
        self.arriving.add(connection)
        return connection, remote

    def close(self) -> None:
        for connection in self.arriving:
            connection.close()
        super().close()


def open_sockets(
    hosts: Sequence[str], port: int
) -> tuple[tuple[ListeningSocket, ...], tuple[Address, ...]]:
    """One listening socket per host, all on one port; port 0 picks a free one."""
    if not hosts:
        raise ConfigError(
            "there is no network interface to listen on; "
            "name one with --interface (`lo` keeps to this machine)"
        )
    opened: list[ListeningSocket] = []
    try:
        for host in hosts:
            opened.append(_bound(host, port))
            port = port or opened[0].getsockname()[1]
    except ConfigError:
        for bound in opened:
            bound.close()
        raise
    return tuple(opened), tuple(Address(host, port) for host in hosts)


def _bound(host: str, port: int) -> ListeningSocket:
    bound = ListeningSocket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise ConfigError(_why_not(Address(host, port), error)) from None
    return bound


def _why_not(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {address.port} of {address.host} is taken, perhaps by another `potluck up`; "
            f"choose another with --port (`--port 0` takes a free one)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address.host} is not an address of this machine; name an --interface it has"
    return f"cannot listen at {address}: {error.strerror}"


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
