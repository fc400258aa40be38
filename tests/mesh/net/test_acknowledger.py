"""Acknowledgements to a sender that does not read them, and to one that is gone."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import LinkClosed, ProtocolError
from mesh.limits import ACK_DELAY_S, FRAMES_IN_FLIGHT, FRAMES_PER_ACK
from mesh.net import acknowledger as module
from mesh.net.acknowledger import Acknowledger
from mesh.net.receive_stream import ReceiveStream
from mesh.tensor_frame import encode_header
from tests.mesh.home import header

STREAM_ID = b"a stream"


class Sender:
    """The end of a line that leads to whoever sends frames."""

    def __init__(self) -> None:
        self.is_free = True
        self.gone = False
        self.heard: list[bytes] = []
        self.wrote = asyncio.Event()

    def write(self, data: bytes | memoryview) -> None:
        if self.gone:
            raise LinkClosed("the other side closed it")
        assert self.is_free
        self.heard.append(bytes(data))
        self.wrote.set()


def frame(number: int) -> bytes:
    return number.to_bytes(8, "little") + encode_header(header(1)) + b"x"


def started() -> ReceiveStream:
    stream = ReceiveStream()
    stream.start(STREAM_ID + bytes(8))
    return stream


def come(stream: ReceiveStream, acknowledger: Acknowledger, number: int) -> None:
    """A frame, from the line to its handler."""
    assert stream.take(frame(number)) is not None
    stream.done(1, asyncio.get_running_loop().time())
    acknowledger.handled()


async def test_who_does_not_read_them_gets_one_for_all_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ACK_DELAY_S", ACK_DELAY_S / 20)
    sender, stream = Sender(), started()
    with Acknowledger(sender, stream) as acknowledger:  # type: ignore[arg-type]
        sender.is_free = False
        for number in range(FRAMES_IN_FLIGHT):
            come(stream, acknowledger, number)
        assert not sender.heard
        sender.is_free = True
        await sender.wrote.wait()
        (heard,) = sender.heard
        assert heard[:8] == FRAMES_IN_FLIGHT.to_bytes(8, "little")
        assert len(heard) == 8 + 4 * FRAMES_IN_FLIGHT


async def test_who_sends_more_than_the_window_breaks_the_rules() -> None:
    sender, stream = Sender(), started()
    with Acknowledger(sender, stream) as acknowledger:  # type: ignore[arg-type]
        sender.is_free = False
        for number in range(FRAMES_IN_FLIGHT):
            come(stream, acknowledger, number)
        with pytest.raises(ProtocolError, match="wait for an answer, and one more came"):
            stream.take(frame(FRAMES_IN_FLIGHT))


async def test_a_sender_that_is_gone_is_told_of_by_the_reader() -> None:
    sender, stream = Sender(), started()
    with Acknowledger(sender, stream) as acknowledger:  # type: ignore[arg-type]
        sender.gone = True
        for number in range(FRAMES_PER_ACK):
            come(stream, acknowledger, number)
    assert not sender.heard
