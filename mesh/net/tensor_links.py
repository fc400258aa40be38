"""Tensor links: one stream of frames each way to every peer, kept up while it is wanted.

Whoever sends tensors is the websocket server of that link, since that direction is neither masked
nor copied; so `connect` dials a peer in order to *receive* from it, and a peer that dials us is one
we send to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mesh.errors import LinkClosed, LinkError, ProtocolError, StaleEpoch
from mesh.ids import Address, PeerId
from mesh.limits import (
    HELLO_TIMEOUT_S,
    MAX_TENSOR_PEERS,
    PROBE_BUDGET_S,
    REDIAL_MAX_S,
    REDIAL_MIN_S,
)
from mesh.net.acknowledger import Acknowledger
from mesh.net.dialer import dial_peer
from mesh.net.ending import BadMessage
from mesh.net.probe import LinkMeasure, measure_stream
from mesh.net.send_stream import OnSent, SendStream
from mesh.net.stream_messages import MAX_STREAM_MESSAGE_BYTES
from mesh.net.tensor_link import Link, LinkStats
from mesh.tensor_frame import FrameHeader, Kind, TensorFrame
from mesh.transport import Dials, Line, Routes

TENSOR_ROUTE = "tensor"
_POLICY_VIOLATION = 1008

OnFrame = Callable[[PeerId, TensorFrame], None]


class TensorLinks:
    """All tensor links of a device; `async with` runs them.

    on_frame(peer, frame)    every frame, in order, once. May raise ProtocolError (the link is
                             closed with the reason, the frame passed over) or StaleEpoch (the
                             frame is dropped). Anything else is our bug.
    on_refused(peer, reason) a frame broke the rules.
    on_broken(peer, reason)  a connection that had stood broke: a hint that the peer may be gone.
    on_sent(header, since_s, seconds)  a frame that was sent at that time of the loop's has arrived,
                             and its link was busy with it for so long.
    admit(peer)              whether an authenticated peer may open a link to us.
    """

    def __init__(
        self,
        server: Routes,
        dialer: Dials,
        *,
        on_frame: OnFrame | None = None,
        on_refused: Callable[[PeerId, str], None] = lambda peer, reason: None,
        on_broken: Callable[[PeerId, str], None] = lambda peer, reason: None,
        on_sent: OnSent = lambda header, since_s, seconds: None,
        admit: Callable[[PeerId], bool] = lambda peer: False,
        redial_min_s: float = REDIAL_MIN_S,
        redial_max_s: float = REDIAL_MAX_S,
    ) -> None:
        self.on_frame: OnFrame = on_frame or _nobody_listens
        self.on_refused = on_refused
        self.on_broken = on_broken
        self.on_sent = on_sent
        self.admit = admit
        self._dialer = dialer
        self._redial_min_s = redial_min_s
        self._redial_max_s = redial_max_s
        self._links: dict[PeerId, Link] = {}
        self._tasks = asyncio.TaskGroup()
        server.route(
            TENSOR_ROUTE,
            self._serve,
            max_bytes=MAX_STREAM_MESSAGE_BYTES,
            admit=lambda peer: self.admit(peer),
            direct=True,
        )

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in list(self._links):
            await self.disconnect(peer)
        await self._tasks.__aexit__(kind, error, trace)

    async def connect(self, peer: PeerId, address: Address) -> None:
        """Wants frames from this peer: dials it there, and again whenever the link breaks.

        Returns at once. Frames for the peer wait until it has dialled us in turn.
        """
        link = self._link(peer)
        self._send_stream(peer)
        if link.address == address:
            return
        await self._stop(link)
        link.address = address
        link.keeper = self._tasks.create_task(self._keep(peer, link, address))

    async def disconnect(self, peer: PeerId, reason: str = "the peer has gone") -> None:
        """Stops dialling the peer, forgets what it has not acknowledged, ends waiting sends."""
        link = self._links.get(peer)
        if link is None:
            return
        await self._stop(link)
        stream, link.send = link.send, None
        if stream is not None:
            await stream.close(reason)

    async def send(
        self,
        peer: PeerId,
        header: FrameHeader,
        payload: memoryview,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Hands a frame over for delivery; waits while FRAMES_IN_FLIGHT are unacknowledged.

        On return the payload's buffer is free, and the frame arrives unless the peer is
        disconnected. Raises LinkClosed if it is, or no room came within `timeout_s`.
        """
        stream = self._sending(peer)
        if timeout_s is None:
            await stream.put(header, payload)
            return
        try:
            async with asyncio.timeout(timeout_s):
                await stream.put(header, payload)
        except TimeoutError:
            raise LinkClosed(
                f"{peer.short} took no frame for {timeout_s:g} s "
                f"({'its link is up' if stream.attached else 'it has not dialled this device'})"
            ) from None

    def send_now(self, peer: PeerId, header: FrameHeader, payload: memoryview) -> bool:
        """As `send`, where that would not wait; else False, and nothing is done."""
        return self._sending(peer).put_now(header, payload)

    async def measure(self, peer: PeerId, *, timeout_s: float = 5 * PROBE_BUDGET_S) -> LinkMeasure:
        """Round trip and speed of sending to this peer, by probe frames; best while it is idle.

        Raises LinkClosed, also when the peer does not answer within `timeout_s`.
        """
        stream = self._sending(peer)
        try:
            async with asyncio.timeout(timeout_s):
                return await measure_stream(stream)
        except TimeoutError:
            raise LinkClosed(f"{peer.short} answered no probe for {timeout_s:g} s") from None

    def stats(self, peer: PeerId) -> LinkStats:
        return (self._links.get(peer) or Link()).stats()

    # --- sending: a peer has dialled us ----------------------------------------------------------

    async def _serve(self, websocket: Line) -> None:
        stream = self._send_stream(websocket.peer)
        try:
            await stream.serve(websocket)
        except LinkClosed as error:
            if stream.lost:
                self.on_broken(websocket.peer, str(error))

    def _sending(self, peer: PeerId) -> SendStream:
        link = self._links.get(peer)
        if link is None or link.send is None:
            raise LinkClosed(f"there is no tensor link to {peer.short}: it is not connected")
        return link.send

    def _send_stream(self, peer: PeerId) -> SendStream:
        link = self._link(peer)
        if link.send is None:
            link.send = SendStream(
                peer, link.sent, lambda header, since_s, s: self.on_sent(header, since_s, s)
            )
        return link.send

    # --- receiving: we dial a peer ---------------------------------------------------------------

    async def _keep(self, peer: PeerId, link: Link, address: Address) -> None:
        """Dials for as long as it is not cancelled; slower and slower while nothing comes of it."""
        clock = asyncio.get_running_loop().time
        pause_s = self._redial_min_s
        while True:
            began_s, frames = clock(), link.receive.received_frames
            try:
                reason = await self._receive_from(peer, link, address)
                self.on_broken(peer, reason)
            except (LinkError, ProtocolError):  # nobody there, another device, another version
                pass
            useful = link.receive.received_frames > frames or clock() - began_s > self._redial_max_s
            pause_s = self._redial_min_s if useful else min(2 * pause_s, self._redial_max_s)
            await asyncio.sleep(0 if useful else pause_s)

    async def _receive_from(self, peer: PeerId, link: Link, address: Address) -> str:
        """One connection, to its end; why it ended. Raises if it never stood."""
        websocket = await dial_peer(
            self._dialer,
            address,
            TENSOR_ROUTE,
            peer,
            max_bytes=MAX_STREAM_MESSAGE_BYTES,
        )
        try:
            await websocket.send(link.receive.resume)
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                link.receive.start(await websocket.receive())
            link.receiving = True
            with Acknowledger(websocket, link.receive) as acknowledger:
                return await self._read(websocket, link, acknowledger)
        except TimeoutError:
            raise LinkClosed(f"{peer.short} did not start its stream") from None
        finally:
            link.receiving = False
            await websocket.close("not wanted any more")

    async def _read(self, websocket: Line, link: Link, acknowledger: Acknowledger) -> str:
        """Every frame to its handler, until the connection ends; why it did."""
        clock = asyncio.get_running_loop().time

        def take(data: bytes | bytearray) -> None:
            frame = link.receive.take(data)
            if frame is not None:
                self._deliver(websocket.peer, link, frame)
                link.receive.done(len(data), clock())
            acknowledger.handled()

        try:
            await websocket.each(take)
        except (BadMessage, ProtocolError) as error:
            link.receive.skip()
            link.refused_frames += 1
            await websocket.close(str(error), code=_POLICY_VIOLATION)
            self.on_refused(websocket.peer, str(error))
            return str(error)
        except LinkClosed as error:
            return str(error)

    def _deliver(self, peer: PeerId, link: Link, frame: TensorFrame) -> None:
        if frame.header.kind is Kind.PROBE:
            return  # its acknowledgement is the echo
        try:
            self.on_frame(peer, frame)
        except StaleEpoch:
            link.stale_frames += 1

    # --- both ------------------------------------------------------------------------------------

    def _link(self, peer: PeerId) -> Link:
        link = self._links.get(peer)
        if link is None:
            idle = [other for other, known in self._links.items() if known.idle]
            for other in idle[: max(0, len(self._links) + 1 - MAX_TENSOR_PEERS)]:
                del self._links[other]
            link = self._links[peer] = Link()
        return link

    async def _stop(self, link: Link) -> None:
        keeper, link.keeper, link.address = link.keeper, None, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])


def _nobody_listens(peer: PeerId, frame: TensorFrame) -> None:
    raise ProtocolError("this device takes no tensor frames yet")
