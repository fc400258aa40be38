"""The way out: steps leave as tiles, each peer's in order, and a slow peer holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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


Deliver = Callable[[PeerId, TensorFrame], None]
Lost = Callable[[FrameHeader, str], None]
_Parcel = tuple[FrameHeader, torch.Tensor]


class Outbox:
    """A queue and a task per peer. What is for this device itself is delivered without a link."""

    def __init__(self, me: PeerId, wire: Wire, deliver: Deliver, lost: Lost) -> None:
        """`lost` is told of a step whose peer is gone, as far as this device can see."""
        self.me = me
        self._wire = wire
        self._deliver = deliver
        self._lost = lost
        self._queues: dict[PeerId, asyncio.Queue[_Parcel]] = {}
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
        """Queues a whole step for `peer`. `rows` [S, width] must not be written to afterwards.
        When this device stops, nothing goes out any more.
        """
        if self._is_over:
            return
        assert self._tasks is not None, "the outbox is not running"
        if peer not in self._queues:
            self._queues[peer] = asyncio.Queue()
            self._senders[peer] = self._tasks.create_task(self._drain(peer, self._queues[peer]))
        self._queues[peer].put_nowait((header, rows))

    def forget(self, peer: PeerId) -> None:
        """Drops whatever waits for a peer that is gone."""
        self._queues.pop(peer, None)
        if sender := self._senders.pop(peer, None):
            sender.cancel()

    async def _drain(self, peer: PeerId, queue: asyncio.Queue[_Parcel]) -> None:
        while True:
            header, rows = await queue.get()
            try:
                await self._send_tiles(peer, header, rows)
            except LinkClosed as error:
                self._lost(header, str(error))

    async def _send_tiles(self, peer: PeerId, header: FrameHeader, rows: torch.Tensor) -> None:
        payload = rows.contiguous().numpy().data.cast("B")
        row_bytes = header.width * header.dtype.size_bytes
        for first, count in tiles(header.rows, row_bytes):
            is_whole = count == header.rows == header.tile_rows
            tile = header if is_whole else replace(header, row=first, tile_rows=count)
            part = payload[first * row_bytes : (first + count) * row_bytes]
            if peer == self.me:
                with suppress(ProtocolError):  # who waits for it was told; no link is to be closed
                    self._deliver(peer, TensorFrame(tile, part))
            else:
                await self._wire.send(peer, tile, part)
