"""The receiver's half of a stream (`mesh.net.send_stream`): each frame once, in order."""

from __future__ import annotations

from typing import Final

from mesh.errors import ProtocolError
from mesh.limits import FRAMES_IN_FLIGHT, FRAMES_PER_ACK
from mesh.net.stream_messages import AGE, MICROSECONDS, NUMBER, PREFIX_BYTES, START
from mesh.tensor_frame import Kind, TensorFrame, decode_frame

_MOST_AGE: Final = (1 << 32) - 1


class ReceiveStream:
    """What has been seen of the peer's stream, kept from dial to dial."""

    def __init__(self) -> None:
        self.received_frames = 0
        self.received_bytes = 0
        self.duplicate_frames = 0
        self._id: bytes | None = None
        self._wanted = 0
        self._came_s: list[float] = []  # of the frames that are not acknowledged yet, when
        self._is_asked = False  # one of them wants to be acknowledged at once

    @property
    def resume(self) -> bytes:
        """What the next connection begins with."""
        return b"" if self._id is None else START.pack(self._id, self._wanted)

    @property
    def is_due(self) -> bool:
        """Whether the sender needs to hear of what has come, rather than later of more."""
        return self._is_asked or len(self._came_s) >= FRAMES_PER_ACK

    def acknowledgement(self, now_s: float) -> bytes:
        """For all that has come."""
        ages = [min(round((now_s - came_s) * MICROSECONDS), _MOST_AGE) for came_s in self._came_s]
        self._came_s, self._is_asked = [], False
        return NUMBER.pack(self._wanted) + b"".join(map(AGE.pack, ages))

    def start(self, data: bytes | bytearray) -> None:
        """Takes the peer's start message; another stream id is another run of the peer."""
        if len(data) != START.size:
            raise ProtocolError(f"a start message has {START.size} bytes; {len(data)} came")
        stream_id, number = START.unpack(data)
        if stream_id == self._id and number > self._wanted:
            raise ProtocolError(f"the stream starts at frame {number}, {self._wanted} is wanted")
        self._came_s, self._is_asked = [], False  # the resume message has told of all that had come
        if stream_id != self._id:
            self._id, self._wanted = stream_id, number

    def take(self, data: bytes | bytearray) -> TensorFrame | None:
        """The next frame, or None for one seen before. Whatever it raises, `skip` passes over."""
        if len(data) < PREFIX_BYTES:
            raise ProtocolError(f"frame of {len(data)} bytes: shorter than its number")
        (number,) = NUMBER.unpack_from(data)
        if number < self._wanted:
            self.duplicate_frames += 1
            self._is_asked = True  # it does not know
            return None
        if number > self._wanted:
            raise ProtocolError(f"frame {number} came where {self._wanted} is wanted")
        if len(self._came_s) >= FRAMES_IN_FLIGHT:
            raise ProtocolError(f"{FRAMES_IN_FLIGHT} frames wait for an answer, and one more came")
        frame = decode_frame(memoryview(data)[PREFIX_BYTES:])
        self._is_asked |= frame.header.kind is Kind.PROBE  # its acknowledgement is the echo
        return frame

    def done(self, size_bytes: int, now_s: float) -> None:
        """The wanted frame has been handled: it will be acknowledged and never asked for again."""
        self.received_frames += 1
        self.received_bytes += size_bytes
        self._wanted += 1
        self._came_s.append(now_s)

    def skip(self) -> None:
        """The wanted frame was refused: go on behind it, or a bad frame would come for ever."""
        self._wanted += 1
