"""Whatever a peer sends, codec and frames raise ProtocolError or nothing, fast and small."""

import dataclasses
import struct
import time
import tracemalloc

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.codec import decode, encode, encode_union, unpack
from mesh.errors import ProtocolError
from mesh.ids import Address, Epoch, PeerId
from mesh.limits import (
    MAX_CONTROL_BYTES,
    MAX_CONTROL_DEPTH,
    MAX_CONTROL_ITEMS,
    MAX_HEADER_BYTES,
    MAX_TENSOR_BYTES,
    MAX_TENSOR_DIM,
    MAX_TENSOR_FRAME_BYTES,
    TENSOR_TILE_BYTES,
)
from mesh.messages import Leave, Message, Notice, Request, decode_message, encode_message
from mesh.tensor_frame import DType, FrameHeader, Kind, decode_frame, encode_header, tiles
from tests.mesh.home import header

PEER = PeerId("ab" * 32)
VALID = [
    encode_message(Request(7, "plan", {"rows": [1, 2.5, None, True, b"raw"], "name": "é"})),
    encode_message(Notice("tokens", [1, 2, 3])),
    encode_message(Leave(3)),
]
FRAME = encode_header(header(5)) + b"12345"


def message_or_refusal(data: bytes) -> None:
    try:
        decode_message(data)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 (either outcome is right)


def frame_or_refusal(data: bytes) -> None:
    try:
        frame = decode_frame(data)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert len(frame.payload) == frame.header.tile_bytes


@st.composite
def mutated(draw: st.DrawFn, of: st.SearchStrategy[bytes]) -> bytes:
    """A valid message with bytes replaced, removed or put in."""
    data = bytearray(draw(of))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 8))]
            case 2:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del data[at:]
    return bytes(data)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=6)
    | st.dictionaries(st.text(max_size=4) | st.integers(0, 99), inner, max_size=6),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=400) | mutated(st.sampled_from(VALID)))
@example(b"\xc7\x00\x05")
@example(msgpack.packb(["Notice", ["t", msgpack.ExtType(5, b"")]]))
@example(msgpack.packb(["Notice", ["t", msgpack.Timestamp(1)]]))
@example(msgpack.packb(["Notice", ["t", float("nan")]]))
@example(b"\x92\xa6Notice\x92\xa1t\x81\x90\x01")  # a list as a map's key
@example(b"\x92\xa6Notice\x92\xa2\xff\xfe\xc0")  # bad UTF-8
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    message_or_refusal(data)


@settings(max_examples=300, deadline=None)
@given(plain)
def test_any_msgpack_is_a_message_or_a_protocol_error(value):
    message_or_refusal(msgpack.packb(value))
    message_or_refusal(msgpack.packb(["Notice", ["topic", value]]))
    message_or_refusal(msgpack.packb(["Beat", value]))


@settings(max_examples=600, deadline=None)
@given(st.binary(max_size=400) | mutated(st.just(FRAME)))
@example(struct.pack("<H", 3) + b"\xc7\x00\x05")
def test_any_bytes_are_a_frame_or_a_protocol_error(data):
    frame_or_refusal(data)


wild = st.integers(-1, 2) | st.integers(-(2**63), 2**64 - 1) | st.none() | st.floats() | st.text()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_fields_of_a_header_are_a_frame_or_a_protocol_error(data):
    fields = msgpack.unpackb(FRAME[2:-5])
    for at in data.draw(st.sets(st.integers(0, len(fields) - 1), min_size=1, max_size=4)):
        fields[at] = data.draw(wild)
    packed = msgpack.packb(fields)
    frame_or_refusal(struct.pack("<H", len(packed)) + packed + b"12345")


def bombs() -> dict[str, bytes]:
    whole = MAX_CONTROL_BYTES
    return {
        "a megabyte of empty maps": b"\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000,
        "64 KiB of empty maps": b"\x9f" * 3 + b"\xdc\x0f\xff" + b"\x80" * (whole - 6),
        "nested arrays of empty maps": (b"\xdc\x0f\xff" + b"\x80" * 0xFFE) * 16,
        "deep arrays": b"\x91" * 60_000,
        "deeper arrays than a message is long": b"\x91" * 100_000,
        "deep maps without an end": b"\x81\xa1a" * 100_000,
        "deep maps": b"\x81\xa1a" * 20_000,
        "depth beyond msgpack": b"\x91" * 2000 + b"\xc0",
        "an array that claims 4 GiB": b"\xdd\xff\xff\xff\xff",
        "a map that claims 4 GiB": b"\xdf\xff\xff\xff\xff",
        "a string that claims 4 GiB": b"\xdb\xff\xff\xff\xff",
        "bytes that claim 4 GiB": b"\xc6\xff\xff\xff\xff",
        "an extension that claims 4 GiB": b"\xc9\xff\xff\xff\xff\x05",
        "an extension of nothing": b"\x92\xa6Notice\x92\xa1t\xc7\x00\x05",
        "not a number": b"\x92\xa6Notice\x92\xa1t" + msgpack.packb(float("nan")),
        "infinity": b"\x92\xa6Notice\x92\xa1t" + msgpack.packb(float("-inf")),
        "not a number as a map's value": b"\x92\xa6Notice\x92\xa1t\x81\xa1k\xcb\x7f\xf8" + bytes(6),
        "an unhashable key": b"\x92\xa6Notice\x92\xa1t\x81\x90\x01",
        "something behind the end": VALID[0] + b"\x00",
        "nothing": b"",
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_bombs_are_refused_fast_and_small(name):
    """Reliability test 16."""
    bomb = bombs()[name]
    began_s = time.thread_time()
    with pytest.raises(ProtocolError):
        decode_message(bomb)
    took_s = time.thread_time() - began_s
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode_message(bomb)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 << 20
    assert took_s < 0.1  # of the processor; 10 ms on an idle machine


def test_control_messages_are_bounded_in_size_items_and_depth():
    assert unpack(msgpack.packb([0] * MAX_CONTROL_ITEMS))
    with pytest.raises(ProtocolError):
        unpack(msgpack.packb([0] * (MAX_CONTROL_ITEMS + 1)))
    nested: object = 0
    for _ in range(MAX_CONTROL_DEPTH - 1):
        nested = [nested]
    assert unpack(msgpack.packb(nested))
    with pytest.raises(ProtocolError, match="nested deeper"):
        unpack(msgpack.packb([nested]))
    assert encode(b"x" * (MAX_CONTROL_BYTES - 3))
    with pytest.raises(ProtocolError, match=f"at most {MAX_CONTROL_BYTES}"):
        encode(b"x" * (MAX_CONTROL_BYTES - 2))
    with pytest.raises(ProtocolError, match=f"at most {MAX_CONTROL_BYTES}"):
        unpack(bytes(MAX_CONTROL_BYTES + 1))


def test_values_read_back_as_they_were():
    for data in VALID:
        assert encode_union(decode(Message, data)) == data
    assert Address.parse("[fe80::1]:8478").port == 8478


headers = st.builds(
    FrameHeader,
    epoch=st.builds(Epoch, st.integers(0, 2**63 - 1), st.just(PEER)),
    plan=st.just(header(1).plan),
    session=st.just(header(1).session),
    kind=st.sampled_from(Kind),
    dtype=st.sampled_from(DType),
    choose=st.booleans(),
    position=st.integers(0, MAX_TENSOR_DIM),
    rows=st.integers(4, MAX_TENSOR_DIM),
    row=st.integers(0, 3),
    tile_rows=st.just(1),
    width=st.integers(1, 64),
    until=st.integers(0, MAX_TENSOR_DIM),
)


@given(headers)
def test_a_header_reads_back_and_fits_its_bound(made):
    packed = encode_header(made)
    assert len(packed) + 8 + 10 <= MAX_HEADER_BYTES  # with the link's number and the websocket's
    assert decode_frame(packed + bytes(made.tile_bytes)).header == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": MAX_TENSOR_DIM + 1}, "outside"),
        ({"rows": 0}, "outside"),
        ({"rows": MAX_TENSOR_DIM, "width": MAX_TENSOR_BYTES // MAX_TENSOR_DIM + 1}, "exceeds"),
        ({"row": 1}, "tile rows 1..2 of 1"),
        ({"tile_rows": 0}, "tile rows"),
        ({"position": MAX_TENSOR_DIM + 1}, "beyond any context"),
        ({"until": MAX_TENSOR_DIM + 1}, "beyond any model"),
        ({"width": 6}, "has 6 bytes; 5 came"),
        ({"dtype": DType.FLOAT32}, "has 20 bytes; 5 came"),
    ],
)
def test_a_header_out_of_bounds_says_which(change, said):
    """Reliability test 17."""
    with pytest.raises(ProtocolError, match=said):
        decode_frame(encode_header(dataclasses.replace(header(5), **change)) + b"12345")


HUGE = [2**20 + 1, 2**31, 2**62, -1, -(2**62)]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("field", ["position", "rows", "row", "tile_rows", "width"])
def test_a_number_of_any_size_is_refused_before_anything_is_allocated(field, number):
    """Reliability test 17: huge and negative dimensions cost no memory."""
    names = ["position", "rows", "row", "tile_rows", "width"]
    fields = msgpack.unpackb(FRAME[2:-5])
    fields[7 + names.index(field)] = number
    packed = msgpack.packb(fields)
    data = struct.pack("<H", len(packed)) + packed + b"12345"
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode_frame(data)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 10


def test_frames_are_bounded():
    fits = MAX_TENSOR_FRAME_BYTES - len(encode_header(header(1 << 20)))
    assert decode_frame(encode_header(header(fits)) + bytes(fits))
    with pytest.raises(ProtocolError, match="at most"):
        decode_frame(bytes(MAX_TENSOR_FRAME_BYTES + 1))
    with pytest.raises(ProtocolError, match=f"at most {MAX_HEADER_BYTES}"):
        decode_frame(struct.pack("<H", MAX_HEADER_BYTES) + bytes(MAX_HEADER_BYTES))


@given(st.integers(1, 5000), st.integers(1, 2 * TENSOR_TILE_BYTES))
def test_tiles_cover_all_rows_in_order(rows, row_bytes):
    done = 0
    for first, count in tiles(rows, row_bytes):
        assert first == done
        assert count == 1 or count * row_bytes <= TENSOR_TILE_BYTES
        done += count
    assert done == rows
