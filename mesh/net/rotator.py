"""Changing the mesh's secret: the device that does it, and everybody who later brings it to those
that were off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.errors import (
    BadId,
    LinkError,
    NotOfThisMesh,
    ProtocolError,
    RotationRefused,
)
from mesh.ids import Address, PeerId
from mesh.keyring import Keyring
from mesh.limits import MAX_CANDIDATES, MAX_HINTS_PER_CANDIDATE, REKEY_INTERVAL_S, ROTATE_TIMEOUT_S
from mesh.net.credentials import Credentials
from mesh.net.dialer import Dialer
from mesh.net.rekey import RekeyDesk, ask_peer
from mesh.node import Node
from mesh.rotation import AskPromise, Promise, RekeyMessage, Taken, next_keyring, offer_of
from mesh.trust import MeshSecret, MeshTrust

_log = logging.getLogger(__name__)

MIN_ID_CHARS = 4  # of an id that a person types

_Answer = RekeyMessage | Exception


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation came to."""

    generation: int
    have_it: tuple[PeerId, ...]  # this device included
    behind: tuple[PeerId, ...]  # were off, or could not: they get it when they are met again
    shut_out: tuple[PeerId, ...]


class Rotator:
    """`rotate` once in a while; `run` for as long as the device is up."""

    def __init__(
        self, node: Node, dialer: Dialer, credentials: Credentials, desk: RekeyDesk
    ) -> None:
        self._node = node
        self._dialer = dialer
        self._credentials = credentials
        self._desk = desk
        self._me = credentials.identity.peer
        self._heard: defaultdict[PeerId, list[Address]] = defaultdict(list)

    @property
    def behind(self) -> frozenset[PeerId]:
        """Who of the roster has not shown that it has the secret in force."""
        keyring, met = self._credentials.keyring, self._credentials.trust.met
        return keyring.roster - met - {self._me} if keyring.old else frozenset()

    def name_of(self, peer: PeerId) -> str:
        """What it called itself when it was met last."""
        member = self._node.view.find(peer)
        met = [known.name for known in self._node.known_peers if known.peer == peer]
        return member.name if member is not None else met[0] if met else peer.short

    def find(self, text: str) -> PeerId:
        """A device of the roster by its name or the beginning of its id. Raises BadId."""
        there = self._credentials.keyring.roster | {self._me}
        found = [peer for peer in there if self.name_of(peer) == text]
        if not found and len(text) >= MIN_ID_CHARS:
            found = [peer for peer in there if peer.startswith(text)]
        if found == [self._me]:
            raise BadId("that is this device itself; `potluck leave` takes it out of the mesh")
        if len(found) != 1:
            known = ", ".join(sorted(f"{self.name_of(peer)} ({peer.short})" for peer in there))
            what = "is the name of several; use the id" if found else "is no device of this mesh"
            raise BadId(f"{text[:80]!r} {what}: {known}")
        return found[0]

    async def rotate(self, without: Iterable[PeerId] = (), *, force: bool = False) -> Rotation:
        """Gives the mesh a new secret. Raises RotationRefused or ConfigError; then, unless some
        members had it already and will bring it here, nothing has changed.
        """
        out = frozenset(without)
        self._desk.promise(self._me)
        try:
            mine = self._credentials.keyring
            here = {peer for peer in mine.roster - out if self._node.view.is_here(peer)}
            answers = await self._ask_all(self._dialer, here, AskPromise())
            promises = {p: one for p, one in answers.items() if isinstance(one, Promise)}
            for peer, one in answers.items():
                if isinstance(one, RotationRefused) and not force:
                    raise RotationRefused(f"{peer.short} does not agree: {one}")
            secret = MeshSecret.new()
            keyring = next_keyring(mine, self._me, promises, out, secret, force=force)
            taken = await self._hand_out(keyring, promises, force=force)
            if self._credentials.keyring.secret != mine.secret:
                raise RotationRefused("another device has given the mesh a new secret meanwhile")
            self._credentials.adopt(keyring)
        finally:
            self._desk.release(self._me)
        have_it = frozenset((self._me, *taken))
        return Rotation(
            keyring.generation,
            tuple(sorted(have_it)),
            tuple(sorted(keyring.roster - have_it)),
            tuple(sorted(out)),
        )

    async def run(self) -> None:
        """Brings the secret to devices of the roster that turn up with an older one."""
        while True:
            await asyncio.sleep(REKEY_INTERVAL_S)
            for peer in sorted(self.behind):
                await self._bring(peer)

    def hint(self, address: Address, peer: PeerId) -> None:
        """A device announces itself there with an older secret's tag."""
        known = self._heard[peer]
        if address not in known and len(self._heard) <= MAX_CANDIDATES:
            known[:] = [address, *known][:MAX_HINTS_PER_CANDIDATE]

    async def _hand_out(
        self, keyring: Keyring, to: Iterable[PeerId], *, force: bool
    ) -> frozenset[PeerId]:
        """Before this device takes it itself: if all crash now, nobody is left alone with it."""
        offer = offer_of(keyring, in_force=False)
        answers = await self._ask_all(self._dialer, to, offer)
        taken = frozenset(peer for peer, one in answers.items() if isinstance(one, Taken))
        for peer, one in answers.items():
            if peer not in taken:
                _log.warning("%s did not take the new secret: %s", peer.short, one)
        if answers and not taken and not force:
            why = "; ".join(f"{peer.short}: {one}" for peer, one in answers.items())
            raise RotationRefused(f"no other device took the new secret ({why}); try again")
        return taken

    async def _ask_all(
        self, dialer: Dialer, peers: Iterable[PeerId], question: RekeyMessage
    ) -> dict[PeerId, _Answer]:
        asked = sorted(peers)
        answers = await asyncio.gather(*(self._ask(dialer, peer, question) for peer in asked))
        return dict(zip(asked, answers, strict=True))

    async def _ask(self, dialer: Dialer, peer: PeerId, question: RekeyMessage) -> _Answer:
        """The answer, or why there is none; tries wherever the peer was met."""
        why: Exception = LinkError(f"nobody knows where {peer.short} is")
        try:
            async with asyncio.timeout(2 * ROTATE_TIMEOUT_S):  # both questions within PROMISE_S
                for address in self._addresses(peer):
                    try:
                        return await ask_peer(dialer, address, peer, question)
                    except (LinkError, ProtocolError, TimeoutError, RotationRefused) as error:
                        why = error
        except TimeoutError as error:
            why = error
        return why

    async def _bring(self, peer: PeerId) -> None:
        """To a device that was off: over a link below the secret that it still has."""
        keyring = self._credentials.keyring
        for secret in keyring.old:
            dialer = Dialer(MeshTrust(self._credentials.identity, secret))
            try:
                answer = await self._ask(dialer, peer, offer_of(keyring, in_force=True))
            finally:
                await dialer.close()
            if isinstance(answer, Taken):
                for address in self._addresses(peer):
                    self._node.hint(address, peer)
            if not isinstance(answer, NotOfThisMesh):
                return  # it has it, or is not there, or says no: an older secret changes nothing

    def _addresses(self, peer: PeerId) -> tuple[Address, ...]:
        member = self._node.view.find(peer)
        now = [member.address] if member is not None and member.address is not None else []
        before = [known.address for known in self._node.known_peers if known.peer == peer]
        return tuple(dict.fromkeys((*now, *before, *self._heard.get(peer, ()))))
