"""`potluck join` with the short code: the one device that shows it, and what that one gives."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from apps.join import LOOK_S, Found, listening
from mesh.config import StateFolder
from mesh.errors import BadId, LinkError, PairingFailed
from mesh.identity import Identity
from mesh.ids import Address, PeerId
from mesh.keyring import Keyring
from mesh.limits import DOORS_SETTLE_S, MAX_DOORS, MAX_HINTS_PER_CANDIDATE, MAX_NAME_CHARS
from mesh.net.discovery import PAIRING_SERVICE_TYPE, PAIRING_TAG
from mesh.net.pairing_door import call_at_door
from mesh.net.pairing_talk import Handover
from mesh.printable import printable
from mesh.state_store import FileStore, KnownPeer
from mesh.trust import MeshSecret


async def join_by_short_code(
    folder: StateFolder,
    code: str,
    name: str,
    addresses: list[Address],
    interfaces: tuple[str, ...],
) -> Found:
    """Asks the one device that shows a code to let this one in, and keeps what it gives.

    Raises PairingFailed, LinkError or ConfigError in words; then this device is in no mesh.
    """
    identity = Identity.load(folder)
    doors = addresses or await _find_door(identity.peer, interfaces)
    member, address, handover = await _call(identity, doors, code, name)
    try:
        secret = MeshSecret.from_bytes(handover.secret)
        Keyring(secret, handover.generation, frozenset([member])).save(folder)
    except BadId as error:
        raise PairingFailed(f"{address} gave what is no mesh secret: {error}") from None
    _remember(folder, member, address, handover)
    return Found([f"{printable(handover.name, MAX_NAME_CHARS) or member.short} at {address}"])


async def _call(
    identity: Identity, doors: list[Address], code: str, name: str
) -> tuple[PeerId, Address, Handover]:
    """At the first that answers. A try costs one of three, so no second one is asked after it."""
    for number, address in enumerate(doors, start=1):
        try:
            member, handover = await call_at_door(identity, address, code, name)
        except LinkError:
            if number == len(doors):
                raise
        else:
            return member, address, handover
    raise AssertionError("there is a door, or `_find_door` has said why not")


async def _find_door(own: PeerId, interfaces: tuple[str, ...]) -> list[Address]:
    """Where the one device is that shows a code. Raises PairingFailed for none or several: a code
    tried at the wrong door is a try lost there, and a guess given to whoever stands behind it.
    """
    doors: dict[PeerId, list[Address]] = {}
    seen = asyncio.Event()
    troubles: list[str] = []

    def hint(address: Address, peer: PeerId) -> None:
        if peer in doors or len(doors) < MAX_DOORS:
            known = doors.setdefault(peer, [])
            if address not in known and len(known) < MAX_HINTS_PER_CANDIDATE:
                known.append(address)
            seen.set()

    async with listening(own, PAIRING_TAG, PAIRING_SERVICE_TYPE, interfaces, hint, troubles.append):
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await seen.wait()
                await asyncio.sleep(DOORS_SETTLE_S)  # is there another one?
    if not doors:
        raise PairingFailed(
            "no device near here shows a code; type `potluck invite` on a member, or name the "
            "address that it shows with --peer HOST:PORT" + "".join(f" ({t})" for t in troubles)
        )
    if len(doors) > 1:
        where = ", ".join(f"{peer.short} at {found[0]}" for peer, found in doors.items())
        raise PairingFailed(
            f"several devices show a code ({where}); name one with --peer HOST:PORT"
        )
    return next(iter(doors.values()))


def _remember(folder: StateFolder, member: PeerId, address: Address, handover: Handover) -> None:
    """Where the member meets the others, for `potluck up` where mDNS does not reach."""
    if not 0 < handover.port < 65536:
        return
    store = FileStore(folder.path)
    state = store.load()
    known = KnownPeer(
        member, printable(handover.name, MAX_NAME_CHARS), Address(address.host, handover.port)
    )
    others = tuple(peer for peer in state.peers if peer.peer != member)
    store.save(replace(state, peers=(known, *others)))
