"""Piece links over loopback: answers in order, refusals in words, nothing out of bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mesh.errors import LinkClosed, LinkError, ProtocolError, WeightsMissing
from mesh.ids import PeerId
from mesh.limits import MAX_PIECE_BYTES, MAX_REFUSAL_BYTES
from mesh.net.piece_links import PIECE_ROUTE, PieceLink, PieceRequest, PieceServer
from mesh.trust import MeshSecret
from tests.mesh.home import DEADLINE_S, Device, device

SECRET = MeshSecret.new()
COLLECTION = bytes(range(32))


def content(request: PieceRequest) -> bytes:
    return bytes([request.number % 251]) * (1 + request.number)


async def read(peer: PeerId, request: PieceRequest) -> bytes:
    if request.kind:
        raise WeightsMissing(f"no such thing, {peer.short}" + "!" * 1000)
    return content(request)


@contextlib.asynccontextmanager
async def pair(admitted: bool = True) -> AsyncIterator[tuple[Device, Device]]:
    async with device(SECRET) as sender, device(SECRET) as receiver:
        PieceServer(sender.server, read, admit=lambda peer: admitted)
        yield sender, receiver


async def test_many_requests_ahead_are_answered_in_order() -> None:
    async with pair() as (sender, receiver):
        link = await PieceLink.dial(receiver.dialer, sender.address, sender.peer)
        requests = [PieceRequest(0, COLLECTION, 1000 * number) for number in range(60)]
        for request in requests:
            await link.ask(request)
        for request in requests:
            answer = await link.receive()
            assert (answer.number, answer.refusal) == (request.number, "")
            assert answer.data == content(request)
        await link.close("done")


async def test_the_largest_piece_fits() -> None:
    async with pair() as (sender, receiver):
        link = await PieceLink.dial(receiver.dialer, sender.address, sender.peer)
        await link.ask(PieceRequest(0, COLLECTION, MAX_PIECE_BYTES - 1))
        assert len((await link.receive()).data) == MAX_PIECE_BYTES
        await link.close("done")


async def test_a_refusal_comes_in_words_and_the_link_goes_on() -> None:
    async with pair() as (sender, receiver):
        link = await PieceLink.dial(receiver.dialer, sender.address, sender.peer)
        await link.ask(PieceRequest(7, COLLECTION, 5))
        await link.ask(PieceRequest(0, COLLECTION, 5))
        refused = await link.receive()
        assert refused.number == 5
        assert refused.refusal.startswith(f"no such thing, {receiver.peer.short}")
        assert len(refused.refusal) <= MAX_REFUSAL_BYTES
        assert (await link.receive()).data == content(PieceRequest(0, COLLECTION, 5))
        await link.close("done")


@pytest.mark.parametrize("data", [b"", b"x" * 36, b"x" * 38, b"x" * 70_000])
async def test_a_request_that_is_none_ends_the_link(data: bytes) -> None:
    async with pair() as (sender, receiver):
        websocket = await receiver.dialer.dial(sender.address, PIECE_ROUTE, max_bytes=1000)
        await websocket.send(data)
        with pytest.raises(LinkClosed):
            await websocket.receive()


async def test_who_is_no_member_gets_nothing() -> None:
    async with pair(admitted=False) as (sender, receiver):
        with pytest.raises(LinkError, match="does not know the caller"):
            await PieceLink.dial(receiver.dialer, sender.address, sender.peer)


async def test_another_device_at_the_address_is_not_asked() -> None:
    async with pair() as (sender, receiver):
        with pytest.raises(LinkError, match="expected"):
            await PieceLink.dial(receiver.dialer, sender.address, PeerId("0" * 64))


@pytest.mark.parametrize("answer", [b"", b"abcd", b"\0\0\0\0\2x"])
async def test_an_answer_that_is_none_is_refused(answer: bytes) -> None:
    async with device(SECRET) as sender, device(SECRET) as receiver:

        async def nonsense(websocket: object) -> None:
            await websocket.receive()  # type: ignore[attr-defined]
            await websocket.send(answer)  # type: ignore[attr-defined]
            await asyncio.sleep(DEADLINE_S)

        sender.server.route(PIECE_ROUTE, nonsense, max_bytes=100)
        link = await PieceLink.dial(receiver.dialer, sender.address, sender.peer)
        await link.ask(PieceRequest(0, COLLECTION, 0))
        with pytest.raises(ProtocolError):
            await link.receive()
        await link.close("done")
