"""Letting devices in by a short code: one open door at a time, announced while it is open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from apps.timeline import Timeline
from mesh.ids import Address, PeerId
from mesh.limits import MAX_NAME_CHARS, PAIRING_TRIES, PAIRING_WINDOW_S
from mesh.net.credentials import Credentials
from mesh.net.discovery import PAIRING_SERVICE_TYPE, PAIRING_TAG, Discovery, Interface
from mesh.net.pairing_door import PairingDoor
from mesh.net.pairing_talk import Handover
from mesh.nursery import Nursery
from mesh.pairing_window import PairingWindow, new_short_code


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a person has to know."""

    code: str
    addresses: tuple[Address, ...]  # of the door, for where mDNS does not reach


class Invitations:
    """An open door stands in `nursery`."""

    def __init__(
        self,
        credentials: Credentials,
        name: str,
        interfaces: tuple[Interface, ...],
        timeline: Timeline,
        nursery: Nursery,
    ) -> None:
        self._credentials = credentials
        self._name = name[:MAX_NAME_CHARS]
        self._interfaces = interfaces
        self._timeline = timeline
        self._nursery = nursery
        self._door: PairingDoor | None = None
        credentials.on_changed.append(lambda: self._shut("the mesh has a new secret"))

    def open(self, met_at: Address) -> Invitation:
        """A new code; an older one is good for nothing from now on. `met_at` is where the members
        reach this device: the door is at the next port, if that is free. Raises ConfigError.
        """
        self._shut("a newer code was asked for")
        window = PairingWindow(new_short_code(), asyncio.get_running_loop().time())
        door = PairingDoor(
            self._credentials.identity,
            window,
            lambda peer, name: self._give(peer, name, met_at.port),
            on_refused=self._refused,
        )
        hosts = [host for interface in self._interfaces for host in interface.hosts]
        door.open(hosts, min(met_at.port + 1, 65535))
        self._door = door
        self._nursery.start(self._stand_open(door))
        self._timeline.note(
            "invited",
            f"a code lets one device in for {PAIRING_WINDOW_S:.0f} s, with {PAIRING_TRIES} tries",
        )
        return Invitation(window.code, door.addresses)

    async def _stand_open(self, door: PairingDoor) -> None:
        discovery = Discovery(
            own=self._credentials.identity.peer,
            name=self._name,
            tag=PAIRING_TAG,
            port=door.addresses[0].port,
            interfaces=self._interfaces,
            on_hint=lambda address, peer: None,
            service_type=PAIRING_SERVICE_TYPE,
        )
        announcing = asyncio.ensure_future(discovery.run())
        try:
            self._timeline.note("invitation-over", await door.run())
        finally:
            announcing.cancel()
            await asyncio.wait([announcing])

    def _give(self, peer: PeerId, name: str, port: int) -> Handover:
        """Both sides have confirmed the code: what the newcomer gets."""
        self._credentials.invited(peer)
        keyring = self._credentials.keyring
        self._timeline.note("paired", f"{name} ({peer.short}) has been let in", peer=str(peer))
        return Handover(keyring.secret.raw, keyring.generation, self._name, port)

    def _refused(self, host: str, reason: str) -> None:
        self._timeline.note("not-paired", f"not let in from {host}: {reason}")

    def _shut(self, reason: str) -> None:
        door, self._door = self._door, None
        if door is not None:
            door.shut(reason)
