"""A new mesh secret: who may make one, what the next keyring is, whose offer is taken. Pure.

    ask      the device that rotates asks all members that are here for a promise
    promise  for a few seconds they take a new secret from nobody else
    give     with the promises of most of the roster, it hands out the next keyring, and takes it
             itself when the others have it

Of two who rotate at once at most one has most promises; so has at most one side of a partition.
Whoever has the new secret brings it to those of the roster that have not, so a crash in the middle
either leaves everything as it was, or is finished by the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.codec import decode, encode_union
from mesh.errors import BadId, ProtocolError, RotationRefused
from mesh.ids import PeerId
from mesh.keyring import Keyring
from mesh.trust import MeshSecret

_ID_BYTES = 32


@dataclass(frozen=True, slots=True)
class AskPromise:
    """Take a new secret from nobody but the sender for PROMISE_S."""


@dataclass(frozen=True, slots=True)
class Promise:
    """With what the sender knows, so that the next keyring leaves nobody out."""

    generation: int
    roster: bytes


@dataclass(frozen=True, slots=True)
class NewSecret:
    """`in_force`: at the sender already; else it is handed out for the sender's promise."""

    generation: int
    secret: bytes
    roster: bytes
    in_force: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """It is on the sender's disk and in force there."""

    generation: int


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


RekeyMessage = AskPromise | Promise | NewSecret | Taken | Refusal


def encode_rekey(message: RekeyMessage) -> bytes:
    return encode_union(message)


def decode_rekey(data: bytes | bytearray) -> RekeyMessage:
    """Raises ProtocolError."""
    message: RekeyMessage = decode(RekeyMessage, data)
    return message


def promise_of(keyring: Keyring) -> Promise:
    return Promise(keyring.generation, _pack(keyring.roster))


def offer_of(keyring: Keyring, *, in_force: bool) -> NewSecret:
    return NewSecret(keyring.generation, keyring.secret.raw, _pack(keyring.roster), in_force)


def next_keyring(
    mine: Keyring,
    me: PeerId,
    promises: Mapping[PeerId, Promise],
    without: frozenset[PeerId],
    secret: MeshSecret,
    *,
    force: bool,
) -> Keyring:
    """What comes after `mine`. Raises RotationRefused where too few have promised."""
    known = mine.knowing([me])
    for promise in promises.values():
        known = known.knowing(_unpack(promise.roster))
    roster = known.roster - without
    with_us = (roster & promises.keys()) | {me}
    if not force and not is_majority(with_us, roster):
        raise RotationRefused(
            f"only {len(with_us)} of this mesh's {len(roster)} devices answer here, and the rest "
            "might change the secret as well, which would make two meshes of one; start more of "
            "them, name those that are gone for good with --without, or insist with --force"
        )
    generation = 1 + max([mine.generation, *(one.generation for one in promises.values())])
    try:
        return mine.followed_by(secret, generation, roster)
    except BadId as error:
        raise RotationRefused(f"a device has promised for an impossible mesh: {error}") from None


def is_majority(some: frozenset[PeerId] | set[PeerId], roster: frozenset[PeerId]) -> bool:
    """More than half; of two equal halves the one with the smallest id."""
    if 2 * len(some) == len(roster):
        return min(roster) in some
    return 2 * len(some) > len(roster)


def take_offer(mine: Keyring, me: PeerId, giver: PeerId, offer: NewSecret) -> Keyring:
    """The keyring to go on with, which is `mine` where it is the same already.

    `giver` is proved by the link. Raises RotationRefused, or ProtocolError for what is no offer.
    """
    try:
        secret = MeshSecret.from_bytes(offer.secret)
        roster = _unpack(offer.roster)
        if secret == mine.secret:
            return mine
        if giver not in mine.roster:
            raise RotationRefused(f"{giver.short} is no device that this one knows as a member")
        if offer.generation <= mine.generation:
            raise RotationRefused(
                f"this device has secret number {mine.generation} already; {giver.short} offers "
                f"another number {offer.generation}"
            )
        if me not in roster:
            raise RotationRefused(f"{giver.short} offers a secret that is not for this device")
        return mine.followed_by(secret, offer.generation, roster)
    except BadId as error:
        raise ProtocolError(f"that is no new secret: {error}") from None


def _pack(roster: Iterable[PeerId]) -> bytes:
    return b"".join(bytes.fromhex(peer) for peer in sorted(roster))


def _unpack(packed: bytes) -> frozenset[PeerId]:
    """Raises ProtocolError."""
    if len(packed) % _ID_BYTES:
        raise ProtocolError(f"a roster is made of {_ID_BYTES} bytes a device; {len(packed)} came")
    ids = (packed[at : at + _ID_BYTES] for at in range(0, len(packed), _ID_BYTES))
    return frozenset(PeerId(one.hex()) for one in ids)
