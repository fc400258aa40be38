"""The way out: steps leave as tiles, each peer's in order, and a slow peer holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch

from mesh.errors import LinkClosed, ProtocolError
from mesh.ids import PeerId
from mesh.tensor_frame import FrameHeader, TensorFrame, tiles


class Wire(Protocol):
    """What the runtime needs of the tensor links."""

    async def send(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> None:
        """Waits for room on the link; raises LinkClosed when the peer is gone."""

    def send_now(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> bool:
        """The same where there is room; else False, and nothing is done."""


Deliver = Callable[[PeerId, TensorFrame], None]
Lost = Callable[[FrameHeader, str], None]
_Tile = tuple[FrameHeader, memoryview]


class Outbox:
    """A queue and a task per peer, for what its link does not take at once. What is for this device
    itself is delivered without a link.
    """

    def __init__(self, me: PeerId, wire: Wire, deliver: Deliver, lost: Lost) -> None:
        """`lost` is told of a step whose peer is gone, as far as this device can see."""
        self.me = me
        self._wire = wire
        self._deliver = deliver
        self._lost = lost
        self._queues: dict[PeerId, asyncio.Queue[_Tile]] = {}
        self._waiting: set[PeerId] = set()  # who has something in its queue, or under way from it
        self._senders: dict[PeerId, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._is_over = False

    async def run(self) -> None:
        """Sends until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await asyncio.get_running_loop().create_future()
        finally:
            self._is_over = True

    def post(self, peer: PeerId, header: FrameHeader, rows: torch.Tensor) -> None:
        """Sends a whole step to `peer`, or queues what there is no room for. `rows` [S, width] must
        not be written to afterwards. When this device stops, nothing goes out any more.
        """
        if self._is_over:
            return
        assert self._tasks is not None, "the outbox is not running"
        for tile in _tiles(header, rows):
            if peer in self._waiting or not self._send_now(peer, tile):
                self._queue(peer, tile)

    def forget(self, peer: PeerId) -> None:
        """Drops whatever waits for a peer that is gone."""
        self._queues.pop(peer, None)
        self._waiting.discard(peer)
        if sender := self._senders.pop(peer, None):
            sender.cancel()

    def _send_now(self, peer: PeerId, tile: _Tile) -> bool:
        """Whether it needs to wait for nothing. What is our own waits: it would be taken in the
        midst of what sends it.
        """
        if peer == self.me:
            return False
        try:
            return self._wire.send_now(peer, *tile)
        except LinkClosed:
            return False  # told by who waits for the link

    def _queue(self, peer: PeerId, tile: _Tile) -> None:
        assert self._tasks is not None, "the outbox is running"
        if peer not in self._queues:
            self._queues[peer] = asyncio.Queue()
            self._senders[peer] = self._tasks.create_task(self._drain(peer, self._queues[peer]))
        self._waiting.add(peer)
        self._queues[peer].put_nowait(tile)

    async def _drain(self, peer: PeerId, queue: asyncio.Queue[_Tile]) -> None:
        while True:
            header, payload = await queue.get()
            try:
                await self._send(peer, header, payload)
            except LinkClosed as error:
                self._lost(header, str(error))
            if queue.empty():
                self._waiting.discard(peer)

    async def _send(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> None:
        if peer != self.me:
            await self._wire.send(peer, header, payload)
            return
        with suppress(ProtocolError):  # who waits for it was told; no link is to be closed
            self._deliver(peer, TensorFrame(header, payload))


def _tiles(header: FrameHeader, rows: torch.Tensor) -> Iterator[_Tile]:
    """A step as the frames that it travels in."""
    payload = rows.contiguous().numpy().data.cast("B")
    row_bytes = header.width * header.dtype.size_bytes
    for first, count in tiles(header.rows, row_bytes):
        is_whole = count == header.rows == header.tile_rows
        tile = header if is_whole else replace(header, row=first, tile_rows=count)
        yield tile, payload[first * row_bytes : (first + count) * row_bytes]
