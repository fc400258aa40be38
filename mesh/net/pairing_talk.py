"""What the two sides of a pairing say to each other, each in the order in which it happens.

The TLS below proves both keys and hides the talk; who may come in is decided by the code alone.
A message is its length (2 bytes), its kind (1 byte: 0 as expected, 1 a refusal in words), its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mesh.codec import decode, encode
from mesh.errors import PairingFailed, PotluckError, ProtocolError
from mesh.ids import PeerId
from mesh.limits import MAX_NAME_CHARS, MAX_PAIRING_MESSAGE_BYTES, PAIRING_EXCHANGE_S
from mesh.pairing_window import PairingWindow
from mesh.printable import printable
from mesh.spake import Exchange, Role

PAIRING_VERSION = 1
_LENGTH_BYTES = 2
_EXPECTED, _REFUSED = 0, 1


@dataclass(frozen=True, slots=True)
class Handover:
    """What a member gives to a newcomer that has proved to know the code."""

    secret: bytes
    generation: int
    name: str  # of the member
    port: int  # where the member meets the others


class Talk:
    """Whole messages over a TLS stream to `peer`, whose key the handshake has proved."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: PeerId
    ) -> None:
        self.peer = peer
        self._reader = reader
        self._writer = writer

    async def send(self, body: bytes, kind: int = _EXPECTED) -> None:
        assert len(body) < MAX_PAIRING_MESSAGE_BYTES, "ours are short"
        self._writer.write((len(body) + 1).to_bytes(_LENGTH_BYTES, "big") + bytes([kind]) + body)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next body; raises PairingFailed with the other side's refusal, or at the end."""
        try:
            size = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if not 0 < size <= MAX_PAIRING_MESSAGE_BYTES:
                raise PairingFailed(
                    f"a pairing message has 1 to {MAX_PAIRING_MESSAGE_BYTES} bytes; {size} came"
                )
            message = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise PairingFailed("the other device hung up in the middle of it") from None
        if message[0] == _REFUSED:
            said = message[1:].decode(errors="replace")
            raise PairingFailed(printable(said, len(said)) or "the other device says no")
        return message[1:]

    async def refuse(self, reason: str) -> None:
        """Tells the other side why; whether it still listens does not matter."""
        text = reason.encode()[: MAX_PAIRING_MESSAGE_BYTES - 1]
        with suppress(OSError):
            await self.send(text, _REFUSED)

    def close(self) -> None:
        self._writer.close()


async def let_in(
    talk: Talk, window: PairingWindow, me: PeerId, give: Callable[[PeerId, str], Handover]
) -> None:
    """The member's side. `give(peer, name)` is called once both sides have confirmed.

    Raises a PotluckError after it has told the other side why, and TimeoutError.
    """
    try:
        async with asyncio.timeout(PAIRING_EXCHANGE_S):
            hello = await talk.receive()
            _check_version(hello)
            window.begin(asyncio.get_running_loop().time())
            try:
                await _hand_over(talk, hello[1:], window, me, give)
            finally:  # also when it is cut off in the middle: that was a try
                window.ended()
    except PotluckError as error:  # ours, or what kept `give` from giving
        await talk.refuse(str(error))
        raise


async def _hand_over(
    talk: Talk,
    message: bytes,
    window: PairingWindow,
    me: PeerId,
    give: Callable[[PeerId, str], Handover],
) -> None:
    exchange = Exchange(Role.MEMBER, window.code, newcomer=talk.peer, member=me)
    exchange.take(message)
    await talk.send(exchange.message)
    confirmation = await talk.receive()
    try:
        exchange.confirm(confirmation)
    except PairingFailed as error:
        raise PairingFailed(f"{error}; {_tries(window.tries_left)} with this code") from None
    window.succeeded()
    await talk.send(exchange.confirmation)
    name = exchange.unseal(await talk.receive()).decode(errors="replace")
    await talk.send(exchange.seal(encode(give(talk.peer, printable(name, MAX_NAME_CHARS)))))


def _check_version(hello: bytes) -> None:
    if hello[:1] != bytes([PAIRING_VERSION]):
        raise PairingFailed(
            f"pairing version {PAIRING_VERSION} is spoken here; install the same version of "
            "Potluck on both devices"
        )


def _tries(left: int) -> str:
    return f"{left} more {'try' if left == 1 else 'tries'}" if left else "no more tries"


async def ask_in(talk: Talk, code: str, me: PeerId, name: str) -> Handover:
    """The newcomer's side. Raises PairingFailed and TimeoutError."""
    exchange = Exchange(Role.NEWCOMER, code, newcomer=me, member=talk.peer)
    async with asyncio.timeout(PAIRING_EXCHANGE_S):
        await talk.send(bytes([PAIRING_VERSION]) + exchange.message)
        exchange.take(await talk.receive())
        await talk.send(exchange.confirmation)
        exchange.confirm(await talk.receive())
        await talk.send(exchange.seal(name[:MAX_NAME_CHARS].encode()))
        plain = exchange.unseal(await talk.receive())
    try:
        handover: Handover = decode(Handover, plain)
    except ProtocolError as error:
        raise PairingFailed(f"the other device gave what cannot be read: {error}") from None
    return handover
