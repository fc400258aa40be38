"""mDNS: devices of one mesh find each other's addresses without being told.

What is heard is a hint and no more: whoever answers at the address still has to come through
mutual TLS, and whether a device lives is known from its heartbeats. Where multicast does not work
the mesh goes on with the addresses that it is given or that members pass on.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import zeroconf
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mesh.errors import BadId
from mesh.ids import Address, PeerId
from mesh.limits import (
    INTERFACE_POLL_S,
    MAX_CANDIDATES,
    MAX_HINTS_PER_CANDIDATE,
    MAX_NAME_CHARS,
    PROTOCOL_VERSION,
    RESOLVE_TIMEOUT_S,
)
from mesh.net.interfaces import SYSFS, Interface, choose_interfaces, has_carrier, list_interfaces
from mesh.printable import printable

__all__ = [
    "PAIRING_SERVICE_TYPE",
    "PAIRING_TAG",
    "SERVICE_TYPE",
    "Discovery",
    "Interface",
    "choose_interfaces",
]

SERVICE_TYPE = "_potluck._tcp.local."
PAIRING_SERVICE_TYPE = "_potluck-pair._tcp.local."  # of devices that show a short code
PAIRING_TAG = "open"  # there, instead of a mesh's: a newcomer knows none, and learns none
_RESOLVERS = 4  # at once; the answer is nearly always in the announcement already
_LABEL_CHARS = 32  # of the PeerId: a DNS label holds 63
_NAME_BYTES = 200  # of a TXT entry, which holds 255

OnHint = Callable[[Address, PeerId], None]
_State = dict[str, tuple[bool, tuple[str, ...]]]  # per interface: carrier, addresses


class Discovery:
    """Announces this device on its interfaces and listens for the others of its mesh.

    on_hint(address, peer)  a device of our mesh says it listens there; may repeat.
    on_behind(address, peer) the same with one of `old_tags`: it was off when the secret changed.
    on_other(text)          another mesh or another version is near; each is said once.
    on_trouble(text)        announcing does not work here; said once, then tried again on changes.
    """

    def __init__(
        self,
        *,
        own: PeerId,
        name: str,
        tag: str,
        port: int,
        interfaces: Sequence[Interface],
        on_hint: OnHint,
        on_other: Callable[[str], None] = lambda text: None,
        on_trouble: Callable[[str], None] = lambda text: None,
        service_type: str = SERVICE_TYPE,
        announce: bool = True,
        old_tags: Collection[str] = (),
        on_behind: OnHint = lambda address, peer: None,
        protocol: int = PROTOCOL_VERSION,
        poll_s: float = INTERFACE_POLL_S,
        sysfs: Path = SYSFS,
    ) -> None:
        self._own = own
        self._name = name
        self._tag = tag
        self._port = port
        self._interfaces = tuple(interfaces)
        self._on_hint = on_hint
        self._on_other = on_other
        self._on_trouble = on_trouble
        self._service_type = service_type
        self._announce = announce
        self._old_tags = frozenset(old_tags)
        self._on_behind = on_behind
        self._protocol = protocol
        self._poll_s = poll_s
        self._sysfs = sysfs
        self._names: asyncio.Queue[str] = asyncio.Queue(MAX_CANDIDATES)
        self._queued: set[str] = set()
        self._others: set[str] = set()
        self._in_trouble = False

    async def run(self) -> None:
        """Runs until cancelled; then says goodbye. Trouble with the network never ends it.

        Starts anew when a cable is back or an address has changed: what was announced meanwhile
        was lost, and mDNS itself notices nothing.
        """
        state = self._state()
        while True:
            hosts = [host for _, addresses in state.values() for host in addresses]
            try:
                await self._meet(hosts, state)
                self._in_trouble = False
            except (OSError, RuntimeError, zeroconf.Error) as error:
                self._say_trouble(error)
                await self._until_changed(state)
            state = self._state()

    async def _meet(self, hosts: Sequence[str], state: _State) -> None:
        """Announces and listens at these addresses until the interfaces change."""
        if not hosts:
            await self._until_changed(state)
            return
        async with AsyncZeroconf(interfaces=list(hosts), ip_version=IPVersion.V4Only) as service:
            if self._announce:
                announced = await service.async_register_service(
                    self._own_service(hosts), cooperating_responders=True
                )
            browser = AsyncServiceBrowser(
                service.zeroconf, self._service_type, handlers=[self._on_service]
            )
            async with asyncio.TaskGroup() as tasks:
                resolvers = [
                    tasks.create_task(self._resolve(service.zeroconf)) for _ in range(_RESOLVERS)
                ]
                if self._announce:
                    await announced
                await self._until_changed(state)
                for resolver in resolvers:
                    resolver.cancel()
            await browser.async_cancel()

    def _own_service(self, hosts: Sequence[str]) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            self._service_type,
            self._own_label,
            port=self._port,
            parsed_addresses=list(hosts),
            server=f"potluck-{self._own[:_LABEL_CHARS]}.local.",
            properties={
                "v": str(self._protocol),
                "mesh": self._tag,
                "id": str(self._own),
                "name": self._name.encode()[:_NAME_BYTES].decode(errors="ignore"),
            },
        )

    @property
    def _own_label(self) -> str:
        return f"{self._own[:_LABEL_CHARS]}.{self._service_type}"

    def _on_service(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        """Called by the browser, which knows parameters by these names. A flood is dropped."""
        if state_change is ServiceStateChange.Removed or name == self._own_label:
            return
        if name not in self._queued and not self._names.full():
            self._queued.add(name)
            self._names.put_nowait(name)

    async def _resolve(self, service: Zeroconf) -> None:
        while True:
            name = await self._names.get()
            self._queued.discard(name)
            try:
                info = AsyncServiceInfo(self._service_type, name)
                if info.load_from_cache(service) or await info.async_request(
                    service, RESOLVE_TIMEOUT_S * 1000
                ):
                    self._read(info)
            except zeroconf.Error:  # an announcement that is not even a name
                continue

    def _read(self, info: AsyncServiceInfo) -> None:
        """Anybody on the network may have written this: only what is well-formed goes on."""
        said = info.decoded_properties
        addresses = _addresses(info)
        try:
            peer = PeerId.parse(said.get("id") or "")
        except BadId:
            return
        if peer == self._own or not addresses:
            return
        name = printable(said.get("name"), MAX_NAME_CHARS)
        where = f"{name or peer.short} ({addresses[0]})"
        if said.get("mesh") in self._old_tags:
            for address in addresses:
                self._on_behind(address, peer)
        elif said.get("mesh") != self._tag:
            self._say_other(
                f"{where} is of another mesh; to join them, type on one of the two the code that "
                "`potluck invite` shows on the other"
            )
        elif said.get("v") != str(self._protocol):
            self._say_other(
                f"{where} speaks protocol {printable(said.get('v'), 9) or '?'}, this device "
                f"{self._protocol}; install the same version of Potluck on both"
            )
        else:
            for address in addresses:
                self._on_hint(address, peer)

    def _say_other(self, text: str) -> None:
        if text not in self._others and len(self._others) < MAX_CANDIDATES:
            self._others.add(text)
            self._on_other(text)

    def _say_trouble(self, error: Exception) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            self._on_trouble(
                f"other devices cannot be found by mDNS here ({error}); name one with "
                "--peer HOST:PORT, or let UDP port 5353 and multicast through"
            )

    async def _until_changed(self, state: _State) -> None:
        """Returns when a cable is in again or an interface has another address."""
        while True:
            await asyncio.sleep(self._poll_s)
            now = self._state()
            if any(_came_back(state[name], now[name]) for name in state):
                return
            state = now

    def _state(self) -> _State:
        there = {interface.name: interface for interface in list_interfaces(self._sysfs)}
        return {
            name: (has_carrier(name, self._sysfs), there[name].hosts if name in there else ())
            for name in (interface.name for interface in self._interfaces)
        }


def _came_back(before: tuple[bool, tuple[str, ...]], now: tuple[bool, tuple[str, ...]]) -> bool:
    replugged = now[0] and not before[0]
    return bool(now[1]) and (replugged or now[1] != before[1])


def _addresses(info: AsyncServiceInfo) -> list[Address]:
    """Where the announcement says the device listens; group and null addresses left out."""
    if not info.port:
        return []
    hosts = [ipaddress.ip_address(host) for host in info.parsed_addresses(IPVersion.V4Only)]
    usable = [host for host in hosts if not (host.is_multicast or host.is_unspecified)]
    return [Address(str(host), info.port) for host in usable[:MAX_HINTS_PER_CANDIDATE]]
