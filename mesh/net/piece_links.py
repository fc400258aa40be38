"""Pieces: one device asks another for numbered items of a collection, and gets their bytes.

The link knows neither files nor models: what a collection is, and which items it has, is settled
by the packages above. Whoever has the pieces is the websocket server, since that direction is
neither masked nor copied; and the link is a connection of its own, so that no heartbeat and no
tensor ever waits behind a piece.

    request   kind (1 byte), collection (32 bytes), number (4 bytes)      receiver to sender
    answer    number (4 bytes), 0 (1 byte), the item's bytes              sender to receiver
    refusal   number (4 bytes), 1 (1 byte), why, in words

Answers come in the order of the requests. How many requests are under way is up to the receiver;
the sender reads the next one when it has answered the last.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from mesh.errors import LinkClosed, PotluckError, ProtocolError
from mesh.ids import Address, PeerId
from mesh.limits import MAX_PIECE_BYTES, MAX_REFUSAL_BYTES
from mesh.net.dialer import dial_peer
from mesh.transport import Dials, Line, Routes

PIECE_ROUTE = "pieces"
COLLECTION_BYTES = 32
_REQUEST = struct.Struct(f"<B{COLLECTION_BYTES}sI")
_ANSWER = struct.Struct("<IB")
_POLICY_VIOLATION = 1008
MAX_ANSWER_BYTES = _ANSWER.size + max(MAX_PIECE_BYTES, MAX_REFUSAL_BYTES)


@dataclass(frozen=True, slots=True)
class PieceRequest:
    """Item `number` of `kind` in a collection; what kinds there are, the packages above know."""

    kind: int
    collection: bytes
    number: int


@dataclass(frozen=True, slots=True)
class PieceAnswer:
    """The item's bytes, or in `refusal` why there are none."""

    number: int
    data: memoryview
    refusal: str = ""


Read = Callable[[PeerId, PieceRequest], Awaitable[bytes]]


class PieceServer:
    """Answers every link of every member, each link's requests one after the other."""

    def __init__(self, server: Routes, read: Read, *, admit: Callable[[PeerId], bool]) -> None:
        """`read` returns at most MAX_PIECE_BYTES, or raises a PotluckError that says why not."""
        self._read = read
        server.route(PIECE_ROUTE, self._serve, max_bytes=_REQUEST.size, admit=admit, direct=True)

    async def _serve(self, websocket: Line) -> None:
        try:
            while True:
                request = _decode_request(await websocket.receive())
                await websocket.send(await self._answer(websocket.peer, request))
        except ProtocolError as error:
            await websocket.close(str(error), code=_POLICY_VIOLATION)
        except LinkClosed:
            return  # the receiver has what it wanted, or is gone

    async def _answer(self, peer: PeerId, request: PieceRequest) -> bytes:
        try:
            data = await self._read(peer, request)
        except PotluckError as error:
            why = str(error).encode()[:MAX_REFUSAL_BYTES]
            return _ANSWER.pack(request.number, 1) + why
        assert len(data) <= MAX_PIECE_BYTES
        return _ANSWER.pack(request.number, 0) + data


class PieceLink:
    """The receiver's end of one link: requests go out ahead of their answers."""

    def __init__(self, websocket: Line) -> None:
        self._websocket = websocket

    @classmethod
    async def dial(cls, dialer: Dials, address: Address, peer: PeerId) -> Self:
        """Raises LinkError or VersionMismatch."""
        return cls(await dial_peer(dialer, address, PIECE_ROUTE, peer, max_bytes=MAX_ANSWER_BYTES))

    async def ask(self, request: PieceRequest) -> None:
        """Sends a request; its answer comes from `receive`. Raises LinkClosed."""
        await self._websocket.send(_REQUEST.pack(request.kind, request.collection, request.number))

    async def receive(self) -> PieceAnswer:
        """The next answer. Raises LinkClosed, or ProtocolError for what is none."""
        return _decode_answer(await self._websocket.receive())

    async def close(self, reason: str) -> None:
        """Wakes a waiting `receive`; may be called twice."""
        await self._websocket.close(reason)


def _decode_request(data: bytes | bytearray) -> PieceRequest:
    if len(data) != _REQUEST.size:
        raise ProtocolError(f"a piece request has {_REQUEST.size} bytes; {len(data)} came")
    return PieceRequest(*_REQUEST.unpack(data))


def _decode_answer(data: bytes | bytearray) -> PieceAnswer:
    if len(data) < _ANSWER.size:
        raise ProtocolError(f"an answer has at least {_ANSWER.size} bytes; {len(data)} came")
    number, refused = _ANSWER.unpack_from(data)
    body = memoryview(data)[_ANSWER.size :]
    if refused not in (0, 1):
        raise ProtocolError(f"an answer is of kind 0 or 1; got {refused}")
    if refused:
        text = bytes(body[:MAX_REFUSAL_BYTES]).decode(errors="replace")
        return PieceAnswer(number, memoryview(b""), text or "no reason given")
    return PieceAnswer(number, body)
