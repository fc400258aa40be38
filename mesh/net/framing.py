"""Websocket framing (RFC 6455, section 5), as far as two of us need it: whole binary messages.

Nothing is compressed, no message comes in parts, and whoever dialled masks what it sends. What a
message is to fill is allocated once its length is known and allowed.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from secrets import token_bytes
from typing import Final

from mesh.errors import ProtocolError
from mesh.limits import MAX_CLOSE_REASON_BYTES

_FINAL: Final = 0x80  # of the first byte: the message ends with this frame
_MASKED: Final = 0x80  # of the second
_SHORT: Final = struct.Struct("!BB")
_MIDDLE: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")
_MASK_BYTES: Final = 4
_CODE: Final = struct.Struct("!H")
MOST_CONTROL_BYTES: Final = 125  # RFC 6455, section 5.5


class Opcode(IntEnum):
    """What a frame is; the others that the RFC knows are never sent by us."""

    BINARY = 2
    CLOSE = 8


@dataclass(frozen=True, slots=True)
class Closed:
    """What the other side said when it closed."""

    code: int
    reason: str


class TooLarge(ProtocolError):
    """A message longer than it may be."""


def head(opcode: Opcode, size_bytes: int, mask: bytes = b"") -> bytes:
    """In front of so many bytes, which are masked with `mask`, if there is one."""
    first, masked = _FINAL | opcode, _MASKED if mask else 0
    if size_bytes <= MOST_CONTROL_BYTES:
        return _SHORT.pack(first, masked | size_bytes) + mask
    if size_bytes < 1 << 16:
        return _MIDDLE.pack(first, masked | 126, size_bytes) + mask
    return _LONG.pack(first, masked | 127, size_bytes) + mask


def masked(opcode: Opcode, data: bytes | memoryview) -> bytes:
    """A whole frame as the side that dialled sends it."""
    mask = token_bytes(_MASK_BYTES)
    return head(opcode, len(data), mask) + _xor(data, mask)


def closing(code: int, reason: str) -> bytes:
    """What a close frame carries."""
    return _CODE.pack(code) + reason_bytes(reason)


def reason_bytes(reason: str) -> bytes:
    """As much of it as a close frame holds, in whole letters."""
    return reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore").encode()


@dataclass(slots=True)
class Reader:
    """What comes over one connection, in any pieces, as whole messages.

    After an error nothing more is to be fed: nobody knows where the next frame begins.
    """

    max_bytes: int  # of a message
    is_masked: bool  # the other side dialled
    messages: deque[bytearray] = field(default_factory=deque)
    closed: Closed | None = None  # it has closed; what comes behind that does not count
    _head: bytearray = field(default_factory=bytearray)
    _opcode: Opcode = Opcode.BINARY
    _mask: bytes = b""
    _body: bytearray | None = None
    _filled: int = 0

    @property
    def missing_bytes(self) -> int:
        """Of the message under way, not counting what is around it."""
        return 0 if self._body is None else len(self._body) - self._filled

    def feed(self, data: memoryview) -> None:
        """Raises ProtocolError for what none of us sends, TooLarge for what is too long."""
        at = 0
        while at < len(data) and self.closed is None:
            at += self._read_head(data[at:]) if self._body is None else self._read_body(data[at:])

    def _read_head(self, data: memoryview) -> int:
        """As much of a head as is there; how many bytes that was."""
        wanted = self._head_bytes() - len(self._head)
        self._head += data[:wanted]
        if len(self._head) == self._head_bytes():
            self._begin()
        return min(wanted, len(data))

    def _head_bytes(self) -> int:
        """How long the head is, as far as it can be told."""
        if len(self._head) < _SHORT.size:
            return _SHORT.size
        more = {126: _MIDDLE.size, 127: _LONG.size}.get(self._head[1] & 0x7F, _SHORT.size)
        return more + (_MASK_BYTES if self._head[1] & _MASKED else 0)

    def _begin(self) -> None:
        """The head is whole."""
        first, second = self._head[0], self._head[1]
        kind = first & ~_FINAL
        if not first & _FINAL or kind not in (Opcode.BINARY, Opcode.CLOSE):
            raise ProtocolError(f"a websocket frame that starts with {first:#04x}")
        if bool(second & _MASKED) != self.is_masked:
            raise ProtocolError("whoever dialled masks its frames, and nobody else does")
        size = second & 0x7F
        if size == 126:
            size = _MIDDLE.unpack_from(self._head)[2]
        elif size == 127:
            size = _LONG.unpack_from(self._head)[2]
        self._opcode = Opcode(kind)
        most = MOST_CONTROL_BYTES if self._opcode is Opcode.CLOSE else self.max_bytes
        if size > most:
            raise TooLarge(f"a message of {size} bytes; at most {most}")
        self._mask = bytes(self._head[-_MASK_BYTES:]) if self.is_masked else b""
        self._head = bytearray()
        self._body, self._filled = bytearray(size), 0
        if not size:
            self._end(self._body)

    def _read_body(self, data: memoryview) -> int:
        assert self._body is not None, "there is a message under way"
        part = data[: len(self._body) - self._filled]
        self._body[self._filled : self._filled + len(part)] = part
        self._filled += len(part)
        if self._filled == len(self._body):
            self._end(self._body)
        return len(part)

    def _end(self, body: bytearray) -> None:
        """A frame is whole."""
        self._body = None
        if self._mask:
            body = bytearray(_xor(body, self._mask))
        if self._opcode is Opcode.BINARY:
            self.messages.append(body)
            return
        code = _CODE.unpack_from(body)[0] if len(body) >= _CODE.size else 0
        self.closed = Closed(code, bytes(body[_CODE.size :]).decode(errors="replace"))


def _xor(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    """Masks, or takes the mask off again."""
    size = len(data)
    whole = (mask * (size // _MASK_BYTES + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")
