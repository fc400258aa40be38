"""The re-key link: how a new mesh secret goes from one device to another, both ends.

It is a websocket like the others, so both PeerIds are proved before a word is said. It is dialled
with the secret that the *other* side still has; an old secret opens nothing at a device that has a
newer one. The link takes one question and gives one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.errors import ConfigError, LinkClosed, ProtocolError, RotationRefused
from mesh.ids import Address, PeerId
from mesh.limits import MAX_CONTROL_BYTES, PROMISE_S, ROTATE_TIMEOUT_S
from mesh.net.credentials import Credentials
from mesh.net.dialer import Dialer, check_peer
from mesh.net.server import WebsocketServer
from mesh.net.websocket import Websocket
from mesh.rotation import (
    AskPromise,
    NewSecret,
    Promise,
    Refusal,
    RekeyMessage,
    Taken,
    decode_rekey,
    encode_rekey,
    promise_of,
    take_offer,
)

REKEY_ROUTE = "rekey"
_POLICY_VIOLATION = 1008


class RekeyDesk:
    """This device's answers. Only devices of its roster are admitted.

    `on_taken(giver)`: a new secret came, and is in force.
    """

    def __init__(
        self,
        server: WebsocketServer,
        credentials: Credentials,
        on_taken: Callable[[PeerId], None] = lambda giver: None,
    ) -> None:
        self._credentials = credentials
        self._on_taken = on_taken
        self._promised_to: PeerId | None = None
        self._until_s = 0.0
        server.route(
            REKEY_ROUTE,
            self._serve,
            max_bytes=MAX_CONTROL_BYTES,
            admit=lambda peer: peer in credentials.keyring.roster,
        )

    def promise(self, peer: PeerId) -> Promise:
        """Raises RotationRefused while another device has our promise."""
        holder = self._holder
        if holder is not None and holder != peer:
            raise RotationRefused(
                f"{holder.short} is giving the mesh a new secret at this moment; "
                f"try again in {PROMISE_S:g} s"
            )
        self._promised_to = peer
        self._until_s = asyncio.get_running_loop().time() + PROMISE_S
        return promise_of(self._credentials.keyring)

    def release(self, peer: PeerId) -> None:
        """The rotation for which `peer` had our promise is over."""
        if self._promised_to == peer:
            self._promised_to = None

    async def _serve(self, websocket: Websocket) -> None:
        try:
            async with asyncio.timeout(ROTATE_TIMEOUT_S):
                question = decode_rekey(await websocket.receive())
            await websocket.send(encode_rekey(self._answer(websocket.peer, question)))
            async with asyncio.timeout(ROTATE_TIMEOUT_S):
                await websocket.receive()  # nothing more comes but the end
        except ProtocolError as error:
            await websocket.close(str(error), code=_POLICY_VIOLATION)
        except (LinkClosed, TimeoutError):
            return  # whoever asked has gone, or never asked

    def _answer(self, peer: PeerId, question: RekeyMessage) -> RekeyMessage:
        try:
            match question:
                case AskPromise():
                    return self.promise(peer)
                case NewSecret():
                    return self._take(peer, question)
                case _:
                    raise ProtocolError("that answers a question that was not asked")
        except (RotationRefused, ConfigError) as error:
            return Refusal(str(error))

    def _take(self, giver: PeerId, offer: NewSecret) -> Taken:
        """A device that was stopped in the middle of its rotation finds its promises gone: others
        may have rotated meanwhile.
        """
        if not offer.in_force and self._holder != giver:
            raise RotationRefused("the promise has run out; rotate again")
        mine = self._credentials.keyring
        keyring = take_offer(mine, self._credentials.identity.peer, giver, offer)
        if keyring is not mine:
            self._credentials.adopt(keyring)
            self._on_taken(giver)
        self.release(giver)
        return Taken(keyring.generation)

    @property
    def _holder(self) -> PeerId | None:
        """Who has our promise now."""
        held = asyncio.get_running_loop().time() < self._until_s
        return self._promised_to if held else None


async def ask_peer(
    dialer: Dialer, address: Address, peer: PeerId, question: RekeyMessage
) -> RekeyMessage:
    """One question to the device that must be `peer`, and its answer.

    Raises LinkError, ProtocolError, TimeoutError, or RotationRefused in the other's words.
    """
    async with asyncio.timeout(ROTATE_TIMEOUT_S):
        websocket = await dialer.dial(address, REKEY_ROUTE, max_bytes=MAX_CONTROL_BYTES)
        await check_peer(websocket, address, peer)
        try:
            await websocket.send(encode_rekey(question))
            answer = decode_rekey(await websocket.receive())
        finally:
            await websocket.close("answered")
    if isinstance(answer, Refusal):
        raise RotationRefused(answer.reason)
    return answer
