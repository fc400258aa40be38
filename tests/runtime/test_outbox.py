"""The way out, where the device that a step goes to is this one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.limits import TENSOR_TILE_BYTES
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from runtime.outbox import Outbox

ME, OTHER = PeerId("1" * 64), PeerId("2" * 64)


class NoWire:
    async def send(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> None:
        raise AssertionError("nothing leaves this device")

    def send_now(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> bool:
        raise AssertionError("nothing leaves this device")


class MoodyWire:
    """Takes a frame at once or not, as the moods say in turn; then it lets others go first."""

    def __init__(self, moods: list[bool]) -> None:
        self.sent: list[tuple[int, int]] = []
        self._moods = iter(moods)

    def send_now(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> bool:
        is_taken = next(self._moods, True)
        if is_taken:
            self._note(header)
        return is_taken

    async def send(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> None:
        await asyncio.sleep(0)
        self._note(header)

    def _note(self, header: FrameHeader) -> None:
        self.sent.append((header.position, header.row))


def step(position: int) -> FrameHeader:
    return FrameHeader(
        epoch=Epoch(1, ME),
        plan=PlanId.new(),
        session=SessionId.new(),
        kind=Kind.TOKENS,
        dtype=DType.INT32,
        choose=False,
        position=position,
        rows=1,
        row=0,
        tile_rows=1,
        width=1,
    )


async def test_a_frame_of_our_own_that_is_refused_ends_nothing() -> None:
    """There is no link to close; what comes behind it is delivered."""
    taken: asyncio.Queue[int] = asyncio.Queue()

    def take(peer: PeerId, frame: TensorFrame) -> None:
        if frame.header.position == 0:
            raise ProtocolError("not this one")
        taken.put_nowait(frame.header.position)

    outbox = Outbox(ME, NoWire(), take, lambda header, reason: None)
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(0)
    for position in (0, 1):
        outbox.post(ME, step(position), torch.zeros(1, 1, dtype=torch.int32))
    async with asyncio.timeout(5):
        assert await taken.get() == 1
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


@given(moods=st.lists(st.booleans(), max_size=40), pauses=st.sets(st.integers(0, 20)))
def test_frames_keep_their_order_whatever_the_link_takes_at_once(
    moods: list[bool], pauses: set[int]
) -> None:
    """Some steps are of several tiles."""
    wire, steps = MoodyWire(moods), 20
    width = TENSOR_TILE_BYTES // 8

    async def run() -> None:
        outbox = Outbox(ME, wire, lambda peer, frame: None, lambda header, reason: None)
        running = asyncio.create_task(outbox.run())
        await asyncio.sleep(0)
        for position in range(steps):
            rows = 1 + 4 * (position % 2)  # of half a tile each
            header = replace(step(position), rows=rows, tile_rows=rows, width=width)
            outbox.post(OTHER, header, torch.zeros(rows, width, dtype=torch.int32))
            if position in pauses:
                await asyncio.sleep(0)
        while len(wire.sent) < steps // 2 * (1 + 3):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(run())
    assert wire.sent == sorted(wire.sent)
    assert len(set(wire.sent)) == len(wire.sent)
