"""What is known of the tensor links with one peer, and the counts shown of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mesh.ids import Address
from mesh.net.receive_stream import ReceiveStream
from mesh.net.send_stream import SendCounts, SendStream


@dataclass(frozen=True, slots=True)
class LinkStats:
    """Counts since this process first met the peer; bytes with headers, without TLS."""

    sending: bool = False  # the peer has dialled us
    receiving: bool = False  # we have dialled the peer
    sent_frames: int = 0
    sent_bytes: int = 0
    resent_frames: int = 0
    received_frames: int = 0
    received_bytes: int = 0
    duplicate_frames: int = 0
    refused_frames: int = 0  # broke the rules; each cost a connection
    stale_frames: int = 0  # of an older epoch; dropped


@dataclass(slots=True)
class Link:
    """Everything about one peer. The receive stream stays when the peer is disconnected: should it
    come back without having noticed, nothing must arrive twice.
    """

    receive: ReceiveStream = field(default_factory=ReceiveStream)
    send: SendStream | None = None
    sent: SendCounts = field(default_factory=SendCounts)
    address: Address | None = None  # where we keep dialling, while it is wanted
    keeper: asyncio.Task[None] | None = None
    receiving: bool = False
    refused_frames: int = 0
    stale_frames: int = 0

    @property
    def idle(self) -> bool:
        """Nobody wants it: it may be forgotten."""
        return self.keeper is None and self.send is None

    def stats(self) -> LinkStats:
        return LinkStats(
            sending=self.send is not None and self.send.attached,
            receiving=self.receiving,
            sent_frames=self.sent.frames,
            sent_bytes=self.sent.size_bytes,
            resent_frames=self.sent.resent,
            received_frames=self.receive.received_frames,
            received_bytes=self.receive.received_bytes,
            duplicate_frames=self.receive.duplicate_frames,
            refused_frames=self.refused_frames,
            stale_frames=self.stale_frames,
        )
