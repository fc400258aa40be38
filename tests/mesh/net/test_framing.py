"""Websocket frames: whatever pieces they come in, whole messages or a refusal come out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from mesh.net.framing import (
    MOST_CONTROL_BYTES,
    Closed,
    Opcode,
    Reader,
    TooLarge,
    closing,
    head,
    masked,
)

MOST = 1 << 17
MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, MOST]).map(bytes),
    ),
    max_size=5,
)


def framed(message: bytes, *, is_masked: bool) -> bytes:
    if is_masked:
        return masked(Opcode.BINARY, message)
    return head(Opcode.BINARY, len(message)) + message


@settings(deadline=None)
@given(MESSAGES, st.booleans(), st.data())
def test_messages_come_whole_in_any_pieces(
    messages: list[bytes], is_masked: bool, data: st.DataObject
) -> None:
    stream = b"".join(framed(one, is_masked=is_masked) for one in messages)
    stream += (masked if is_masked else unmasked)(Opcode.CLOSE, closing(1008, "why"))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = Reader(MOST, is_masked)
    for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(memoryview(stream)[first:last])
    assert list(reader.messages) == messages
    assert reader.closed == Closed(1008, "why")
    assert reader.missing_bytes == 0


def unmasked(opcode: Opcode, data: bytes) -> bytes:
    return head(opcode, len(data)) + data


@settings(deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_garbage_is_refused_in_our_words_or_waits_for_more(garbage: bytes, is_masked: bool) -> None:
    reader = Reader(64, is_masked)
    try:
        reader.feed(memoryview(garbage))
    except ProtocolError:
        return
    assert sum(map(len, reader.messages)) + reader.missing_bytes <= len(garbage) + 64


@pytest.mark.parametrize("size", [MOST + 1, 1 << 40, (1 << 64) - 1])
def test_what_is_too_long_is_refused_before_anything_is_allocated(size: int) -> None:
    reader = Reader(MOST, is_masked=False)
    with pytest.raises(TooLarge, match=str(MOST)):
        reader.feed(memoryview(head(Opcode.BINARY, size)))
    assert reader.missing_bytes == 0


@pytest.mark.parametrize(
    "frame",
    [
        b"\x02\x01x",  # in parts
        b"\x80\x01x",  # what goes on with parts
        b"\x81\x01x",  # text
        b"\x89\x00",  # a ping
        b"\xc2\x01x",  # compressed
        b"\x82\x81\0\0\0\0x",  # masked by who did not dial
        b"\x88\x7e" + (MOST_CONTROL_BYTES + 1).to_bytes(2, "big"),
    ],
)
def test_what_none_of_us_sends_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader(MOST, is_masked=False).feed(memoryview(frame))


def test_what_comes_behind_a_close_does_not_count() -> None:
    reader = Reader(MOST, is_masked=False)
    reader.feed(memoryview(unmasked(Opcode.CLOSE, b"") + unmasked(Opcode.BINARY, b"late")))
    assert reader.closed == Closed(0, "")
    assert not reader.messages
