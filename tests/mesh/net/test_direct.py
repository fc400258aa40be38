"""A direct websocket against aiohttp's own at the other end, and what else it promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mesh.errors import LinkClosed
from mesh.limits import CLOSE_TIMEOUT_S, MAX_WAITING_MESSAGES
from mesh.net.ending import BadMessage
from mesh.trust import MeshSecret
from tests.mesh.home import Device, device

SECRET = MeshSecret.new()
ROUTE = "echo"
MOST = 1 << 20
SIZES = [0, 1, 125, 126, 65535, 65536, 300_000, MOST]


async def echo(websocket: object) -> None:
    try:
        while True:
            await websocket.send(await websocket.receive())  # type: ignore[attr-defined]
    except LinkClosed:
        return


@pytest.mark.parametrize("there", [False, True], ids=["aiohttp's there", "direct there"])
@pytest.mark.parametrize("here", [False, True], ids=["aiohttp's here", "direct here"])
async def test_either_end_may_be_aiohttps(here: bool, there: bool) -> None:
    async with device(SECRET) as one, device(SECRET) as two:
        one.server.route(ROUTE, echo, max_bytes=MOST, direct=there)
        websocket = await two.dialer.dial(one.address, ROUTE, max_bytes=MOST, direct=here)
        assert websocket.peer == one.peer
        for size in SIZES:
            message = bytes(index % 251 for index in range(size))
            await websocket.send(message)
            assert await websocket.receive() == message
        await websocket.close("enough")
        with pytest.raises(LinkClosed, match="enough"):
            await websocket.receive()


async def dialled(one: Device, two: Device, serve: Callable[..., object]) -> object:
    one.server.route(ROUTE, serve, max_bytes=MOST, direct=True)  # type: ignore[arg-type]
    return await two.dialer.dial(one.address, ROUTE, max_bytes=1000, direct=True)


async def test_what_is_too_long_ends_the_link_and_both_hear_why() -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def send_too_much(websocket: object) -> None:
        await websocket.receive()  # type: ignore[attr-defined]
        await websocket.send(b"first")  # type: ignore[attr-defined]
        await websocket.send(bytes(1001))  # type: ignore[attr-defined]
        ended.set_result(await websocket.wait_closed())  # type: ignore[attr-defined]

    async with device(SECRET) as one, device(SECRET) as two:
        websocket = await dialled(one, two, send_too_much)
        await websocket.send(b"")  # type: ignore[attr-defined]
        assert await websocket.receive() == b"first"  # type: ignore[attr-defined]
        with pytest.raises(BadMessage, match="1001 bytes; at most 1000"):
            await websocket.receive()  # type: ignore[attr-defined]
        assert "at most 1000" in await ended


async def count_up(websocket: object) -> None:
    try:
        await websocket.receive()  # type: ignore[attr-defined]
        for number in range(100):
            await websocket.send(bytes([number]))  # type: ignore[attr-defined]
        await websocket.receive()  # type: ignore[attr-defined]
    except LinkClosed:
        return


async def test_each_message_is_taken_in_order_until_the_end() -> None:
    async with device(SECRET) as one, device(SECRET) as two:
        websocket = await dialled(one, two, count_up)
        await websocket.send(b"")  # type: ignore[attr-defined]
        taken = [await websocket.receive()]  # type: ignore[attr-defined]

        def take(message: bytearray) -> None:
            taken.append(message)
            if len(taken) == 100:
                websocket.write(b"")  # type: ignore[attr-defined]

        with pytest.raises(LinkClosed, match="done"):
            await websocket.each(take)  # type: ignore[attr-defined]
        assert taken == [bytes([number]) for number in range(100)]


async def test_what_the_taker_raises_is_raised_and_the_rest_is_still_there() -> None:
    async with device(SECRET) as one, device(SECRET) as two:
        websocket = await dialled(one, two, count_up)
        await websocket.send(b"")  # type: ignore[attr-defined]
        taken = []

        def take(message: bytearray) -> None:
            taken.append(message[0])
            if message[0] == 40:
                raise KeyError("not this one")

        with pytest.raises(KeyError, match="not this one"):
            await websocket.each(take)  # type: ignore[attr-defined]
        assert taken == list(range(41))
        assert await websocket.receive() == bytes([41])  # type: ignore[attr-defined]
        await websocket.close("enough")  # type: ignore[attr-defined]


async def test_who_does_not_take_what_comes_holds_up_the_sender() -> None:
    sent = 0

    async def flood(websocket: object) -> None:
        nonlocal sent
        await websocket.receive()  # type: ignore[attr-defined]
        try:
            while True:
                await websocket.send(bytes(1000))  # type: ignore[attr-defined]
                sent += 1
        except LinkClosed:
            return

    async with device(SECRET) as one, device(SECRET) as two:
        websocket = await dialled(one, two, flood)
        await websocket.send(b"")  # type: ignore[attr-defined]
        before = -1
        while sent != before:  # until the network between them is full
            before = sent
            for _ in range(200):
                await asyncio.sleep(0)
        waiting = websocket._reader.messages  # type: ignore[attr-defined]
        # What was in the buffer when reading stopped is there as well.
        assert MAX_WAITING_MESSAGES < len(waiting) <= MAX_WAITING_MESSAGES + 300
        for _ in range(before):
            assert len(await websocket.receive()) == 1000  # type: ignore[attr-defined]
        await websocket.close("enough")  # type: ignore[attr-defined]


async def test_who_does_not_answer_a_close_is_cut_off() -> None:
    async def deaf(websocket: object) -> None:
        websocket._on_close = lambda said: None  # type: ignore[attr-defined]
        await websocket.wait_closed()  # type: ignore[attr-defined]

    async with device(SECRET) as one, device(SECRET) as two:
        websocket = await dialled(one, two, deaf)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await websocket.close("enough")  # type: ignore[attr-defined]
        assert loop.time() - began_s < CLOSE_TIMEOUT_S + 1


async def test_a_broken_connection_wakes_who_waits() -> None:
    async def cut(websocket: object) -> None:
        await websocket.receive()  # type: ignore[attr-defined]
        websocket.abort("pulled")  # type: ignore[attr-defined]

    async with device(SECRET) as one, device(SECRET) as two:
        websocket = await dialled(one, two, cut)
        await websocket.send(b"")  # type: ignore[attr-defined]
        with pytest.raises(LinkClosed, match="broke"):
            await websocket.receive()  # type: ignore[attr-defined]
        with pytest.raises(LinkClosed, match="broke"):
            await websocket.send(b"")  # type: ignore[attr-defined]
