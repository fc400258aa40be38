"""What this device knows of itself: its folder, its interfaces, its daemon."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ifaddr

from apps.client import Client
from apps.doctor.seen import Adapter, Member, OwnDevice
from mesh.config import FolderLock, StateFolder, read_private
from mesh.errors import BadId, ConfigError, PotluckError
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.keyring import Keyring
from mesh.limits import DEFAULT_PORT, PROTOCOL_VERSION
from mesh.net.interfaces import choose_interfaces, list_interfaces, skipped_by_name
from mesh.state_store import FileStore, KnownPeer
from mesh.trust import MeshTrust, mesh_tag

STATUS_TIMEOUT_S = 5.0  # for the own daemon, which may be busy with a model


@dataclass(frozen=True, slots=True)
class Own:
    """`trust` is None while the device is in no mesh."""

    device: OwnDevice
    trust: MeshTrust | None
    remembered: tuple[KnownPeer, ...]


def look_at_adapters() -> tuple[Adapter, ...]:
    """Every network interface of this machine."""
    left_out = {one.name: one.reason for one in choose_interfaces().skipped}
    networks: dict[str, list[str]] = {one.name: [] for one in list_interfaces()}
    has_six: set[str] = set()
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        name = adapter.name.partition(":")[0]
        for ip in adapter.ips:
            if ip.is_IPv4:
                networks[name].append(f"{ip.ip}/{ip.network_prefix}")
            elif skipped_by_name(name) is None and not str(ip.ip[0]).startswith("fe80"):
                has_six.add(name)
    return tuple(
        Adapter(name, tuple(found), name in has_six, left_out.get(name, ""))
        for name, found in sorted(networks.items())
    )


async def look_at_daemon(folder: StateFolder, adapters: Iterable[Adapter], api_port: int) -> Own:
    """This device as its folder and its daemon tell; the ports too, where no daemon runs."""
    keyring = Keyring.load(folder)
    raw = read_private(folder.key)
    # A device that never ran has no key yet; it calls others with one that is thrown away.
    identity = Identity.generate() if raw is None else Identity.load(folder)
    trust = MeshTrust(identity, keyring.secret) if keyring is not None else None
    troubles: list[str] = []
    remembered: tuple[KnownPeer, ...] = ()
    try:
        remembered = FileStore(folder.path).load().peers
    except ConfigError as error:
        troubles.append(str(error))
    runs = FolderLock(folder).is_taken
    listens, status = await _ask(folder) if runs else ((), None)
    if status and status["trouble"]:
        troubles.append(status["trouble"])
    hosts = [host for one in adapters if not one.why_left_out for host in one.hosts]
    device = OwnDevice(
        peer=None if raw is None else identity.peer,
        tag=None if trust is None else trust.tag,
        runs=runs,
        answers=status is not None,
        home=str(folder.path),
        protocol=PROTOCOL_VERSION,
        year=datetime.now(UTC).year,
        listens=listens,
        members=_members(status) if status else (),
        taken_port=None if runs else _taken(hosts, DEFAULT_PORT),
        taken_api_port=None if runs else _taken(["127.0.0.1"], api_port),
        old_tags=tuple(mesh_tag(one) for one in keyring.old) if keyring is not None else (),
        troubles=tuple(troubles),
    )
    return Own(device, trust, remembered)


async def _ask(folder: StateFolder) -> tuple[tuple[Address, ...], dict[str, Any] | None]:
    """Where the daemon says it listens, and its status; None if it does not tell."""
    try:
        record = json.loads(folder.daemon.read_text())
        port = int(record["api_port"])
        listens = tuple(Address.parse(text) for text in record["addresses"])
    except (OSError, ValueError, KeyError, TypeError, BadId):
        return (), None
    try:
        async with asyncio.timeout(STATUS_TIMEOUT_S), Client(port) as client:
            return listens, await client.get("/potluck/status")
    except (TimeoutError, PotluckError):
        return listens, None


def _members(status: dict[str, Any]) -> tuple[Member, ...]:
    """The others that the daemon knows."""
    own = status["device"]["id"]
    return tuple(
        Member(
            PeerId(one["id"]),
            one["name"],
            one["health"] in ("alive", "suspect"),
            Address.parse(one["address"]) if one["address"] else None,
            reaches_us=one["link"]["sending"],
            is_reached=one["link"]["receiving"],
        )
        for one in status["mesh"]["members"]
        if one["id"] != own
    )


def _taken(hosts: Iterable[str], port: int) -> int | None:
    for host in hosts:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError:
                return port
    return None
