"""A source: one device that gives pieces of a model, over a link of its own, for one transfer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import IntEnum

from apps.models.pace import Pace
from apps.models.piece_queue import PieceQueue, window_bytes
from mesh.errors import LinkClosed, LinkError, ProtocolError
from mesh.ids import Address, PeerId
from mesh.limits import (
    MAX_DAMAGED_PIECES,
    MAX_MANIFEST_BYTES,
    MAX_PIECE_BYTES,
    MAX_PIECES_ASKED,
    PIECE_STALL_S,
)
from mesh.net.piece_links import PieceAnswer, PieceLink, PieceRequest
from mesh.transport import Dials
from runtime.stored.manifest import Manifest, decode_manifest
from runtime.stored.partial import DamagedPiece, PartialModel

# (source, piece) once a piece has come and was right
OnPiece = Callable[["Source", int], None]
# (source, piece) for one that was damaged
OnDamaged = Callable[["Source", int], None]


class Kind(IntEnum):
    """What may be asked for on a piece link. The collection is a manifest's id."""

    PIECE = 0
    MANIFEST = 1  # its parts, of MAX_PIECE_BYTES


class Source:
    """Draws from one device what the queue gives it."""

    def __init__(self, peer: PeerId, name: str, address: Address) -> None:
        self.peer = peer
        self.name = name
        self.address = address
        self.size_bytes = 0  # of pieces that came and were right
        self.damaged = 0
        self._pace = Pace(asyncio.get_running_loop().time())
        self._asked: deque[int] = deque()
        self._asked_bytes = 0

    def reset(self) -> None:
        """Forgets what was asked over a link that is gone."""
        self._asked.clear()
        self._asked_bytes = 0

    async def draw(
        self,
        dialer: Dials,
        partial: PartialModel,
        queue: PieceQueue,
        changed: Callable[[], Awaitable[None]],
        on_piece: OnPiece,
        on_damaged: OnDamaged,
    ) -> None:
        """Asks and takes until cancelled; `changed` waits until the queue may have more.

        Raises LinkError, ProtocolError, or LinkClosed for a source that stalls or gives nothing
        but damaged pieces; ModelError when the disk refuses a piece.
        """
        link = await PieceLink.dial(dialer, self.address, self.peer)
        taking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        taking.set_result(None)
        try:
            while True:
                await self._ask(link, partial.manifest, queue)
                if not self._asked:
                    await taking
                    await changed()
                    continue
                answer = await self._answer(link)
                await taking
                index = self._asked.popleft()
                self._asked_bytes -= partial.manifest.size_of(index)
                if answer.refusal:
                    queue.failed(index, self.peer)
                    continue
                # While this piece is hashed and written, the next one comes.
                taking = asyncio.ensure_future(
                    self._take(partial, queue, index, answer, on_piece, on_damaged)
                )
        except (LinkError, ProtocolError):
            await taking  # what came before the fault counts
            raise
        finally:
            if not taking.cancel() and not taking.cancelled():
                taking.exception()  # seen: it was raised here, or another fault came first
            await link.close("nothing more is wanted")

    async def _take(
        self,
        partial: PartialModel,
        queue: PieceQueue,
        index: int,
        answer: PieceAnswer,
        on_piece: OnPiece,
        on_damaged: OnDamaged,
    ) -> None:
        try:
            if not partial.has(index):  # or it came from elsewhere meanwhile
                await asyncio.to_thread(partial.add, index, answer.data)
        except DamagedPiece:
            self.damaged += 1
            queue.failed(index, self.peer)
            on_damaged(self, index)
            if self.damaged >= MAX_DAMAGED_PIECES:
                raise LinkClosed(f"{self.name} gives damaged pieces") from None
            return
        size = len(answer.data)
        self.size_bytes += size
        self._pace.add(size, asyncio.get_running_loop().time())
        queue.arrived(index)
        on_piece(self, index)

    async def _ask(self, link: PieceLink, manifest: Manifest, queue: PieceQueue) -> None:
        """Fills the window: enough ahead that the link never waits, no more."""
        room = window_bytes(self._pace.bytes_per_s(asyncio.get_running_loop().time()))
        while len(self._asked) < MAX_PIECES_ASKED and self._asked_bytes < room:
            index = queue.next_for(self.peer)
            if index is None:
                return
            self._asked.append(index)
            self._asked_bytes += manifest.size_of(index)
            await link.ask(PieceRequest(Kind.PIECE, manifest.id, index))

    async def _answer(self, link: PieceLink) -> PieceAnswer:
        """To what was asked first."""
        try:
            async with asyncio.timeout(PIECE_STALL_S):
                answer = await link.receive()
        except TimeoutError:
            raise LinkClosed(f"{self.name} gave nothing for {PIECE_STALL_S:g} s") from None
        if answer.number != self._asked[0]:
            raise ProtocolError(f"piece {self._asked[0]} was asked for, {answer.number} came")
        return answer


async def fetch_manifest(
    dialer: Dials, address: Address, peer: PeerId, manifest: bytes, size_bytes: int
) -> Manifest:
    """Raises LinkError, or ProtocolError for one that is not what its id says."""
    if not 0 < size_bytes <= MAX_MANIFEST_BYTES:
        raise ProtocolError(f"a manifest of {size_bytes} bytes; at most {MAX_MANIFEST_BYTES}")
    link = await PieceLink.dial(dialer, address, peer)
    data = bytearray()
    try:
        for number in range(-(-size_bytes // MAX_PIECE_BYTES)):
            await link.ask(PieceRequest(Kind.MANIFEST, manifest, number))
            async with asyncio.timeout(PIECE_STALL_S):
                answer = await link.receive()
            if answer.refusal:
                raise LinkClosed(f"{peer.short} does not give its manifest: {answer.refusal}")
            data += answer.data
    except TimeoutError:
        raise LinkClosed(f"{peer.short} gave no manifest for {PIECE_STALL_S:g} s") from None
    finally:
        await link.close("that was all")
    decoded = await asyncio.to_thread(decode_manifest, bytes(data))
    if decoded.id != manifest:
        raise ProtocolError(f"{peer.short} gave another manifest than it named")
    return decoded
