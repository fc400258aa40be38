"""The way out, where the device that a step goes to is this one."""

from __future__ import annotations

import asyncio

import torch

from mesh.errors import ProtocolError
from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame
from runtime.outbox import Outbox

ME = PeerId("1" * 64)


class NoWire:
    async def send(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> None:
        raise AssertionError("nothing leaves this device")


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
