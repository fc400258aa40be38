"""All that reads what a peer, a device of the same network, or a copied file sent: one target each.

A target has inputs that are right (`seeds`), and `read`, which may raise a PotluckError and nothing
else; in the codec it is a ProtocolError.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, get_args

import msgpack
import numpy as np
import torch

from apps.models import messages as model_messages
from apps.planning import messages as planning_messages
from mesh import messages as mesh_messages
from mesh import rotation
from mesh.codec import decode, from_plain, to_named, to_plain
from mesh.errors import PotluckError, ProtocolError
from mesh.ids import ModelId, SessionId
from mesh.net import pairing_talk, piece_links
from mesh.net.overhear import read_announcements
from mesh.net.receive_stream import ReceiveStream
from mesh.state_store import StoredState
from mesh.tensor_frame import FrameHeader, Kind, decode_frame, encode_header
from planner.checks import check_head, check_shares
from planner.plan import Plan, Span
from planner.profile import ModelProfile
from runtime import session_messages
from runtime.chosen import from_payload
from runtime.heads import letters
from runtime.heads.question import Want
from runtime.history import History
from runtime.measured import Measured
from runtime.sampling import Sampling
from runtime.stage import Slice
from runtime.stored.layout import FileSize
from runtime.stored.manifest import Manifest, decode_manifest
from runtime.walks import order
from tests.fuzz.values import changed, damaged, value_of
from tests.mesh.home import header
from tests.mesh.net.test_overhear import announcement

SPAN = Span(10, 60)
HIDDEN = 8
SESSION = SessionId("ef" * 16)


@dataclass(frozen=True, slots=True)
class Target:
    """`allowed` is the only class that `read` may raise."""

    seeds: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]
    allowed: type[PotluckError] = ProtocolError


def message_types() -> Iterator[type]:
    """Every dataclass that devices send each other as the body of a message."""
    modules = (
        *(mesh_messages, planning_messages, model_messages, session_messages),
        *(rotation, pairing_talk),
    )
    for module in modules:
        for one in vars(module).values():
            is_ours = isinstance(one, type) and one.__module__ == module.__name__
            if is_ours and is_dataclass(one):
                yield one
    yield from (Plan, Sampling, Measured, StoredState, ModelProfile)


def inputs(name: str, rng: random.Random) -> Iterator[bytes]:
    """Without end: what is right, what is nearly right, and what is nothing."""
    target = TARGETS[name]
    while True:
        seed = target.seeds(rng)
        yield seed
        for _ in range(8):
            yield damaged(seed, rng)
        yield rng.randbytes(rng.choice((0, 1, 3, 20, 300)))


def try_one(name: str, data: bytes) -> None:
    """Raises whatever the target should not have raised."""
    target = TARGETS[name]
    try:
        target.read(data)
    except target.allowed as error:
        if not str(error):
            raise AssertionError("an error says what was expected") from error


# --- the seeds ------------------------------------------------------------------------------------


@cache
def _types() -> list[type]:
    return list(message_types())


def _packed(plain: Any, rng: random.Random) -> bytes:
    """A third of them as they should be, the others with a lie or three."""
    if rng.randrange(3):
        plain = changed(plain, rng)
    try:
        return msgpack.packb(plain)
    except (OverflowError, ValueError):  # a lie that msgpack cannot tell
        return msgpack.packb(None)


def _message(rng: random.Random) -> bytes:
    kind = rng.choice(get_args(mesh_messages.Message))
    return _packed(to_named(value_of(kind, rng)), rng)


def _rekey(rng: random.Random) -> bytes:
    return _packed(to_named(value_of(rotation.RekeyMessage, rng)), rng)


def _hello(rng: random.Random) -> bytes:
    return _packed(to_named(value_of(mesh_messages.Hello, rng)), rng)


def _body(rng: random.Random) -> bytes:
    """The number of a type, then a value of it."""
    number = rng.randrange(len(_types()))
    return bytes([number]) + _packed(to_plain(value_of(_types()[number], rng)), rng)


def _read_body(data: bytes) -> object:
    if not data:
        return None
    kind = _types()[data[0] % len(_types())]
    value = decode(kind, data[1:])
    assert from_plain(kind, to_plain(value)) == value
    return value


def _plan(rng: random.Random) -> bytes:
    return _packed(to_plain(value_of(Plan, rng)), rng)


def _read_plan(data: bytes) -> None:
    plan: Plan = decode(Plan, data)
    for stage in plan.stages:
        check_shares(stage, _profile())
    check_head(plan.head, _profile())


@cache
def _profile() -> ModelProfile:
    made: ModelProfile = value_of(ModelProfile, random.Random(1))
    return made


def _header(rng: random.Random) -> FrameHeader:
    made: FrameHeader = header(rng.choice((1, 5, 64)), kind=rng.choice(list(Kind)))
    return made


def _frame(rng: random.Random) -> bytes:
    """A third of them with a lie in the header, which is packed as it should be."""
    made = _header(rng)
    data = encode_header(made)
    if not rng.randrange(3):
        packed = _packed(msgpack.unpackb(data[2:]), rng)
        data = len(packed).to_bytes(2, "little") + packed
    return data + bytes(made.tile_bytes)


def _read_frame(data: bytes) -> None:
    frame = decode_frame(data)
    assert len(frame.payload) == frame.header.tile_bytes


def _read_stream(data: bytes) -> None:
    """What a receiver reads of a connection: the start message, then a frame."""
    stream = ReceiveStream()
    stream.start(data[:16])
    stream.take(data[16:])


def _order(rng: random.Random) -> bytes:
    slices = [
        Slice(SESSION, n, torch.zeros(rng.randint(1, 3), 1, dtype=torch.int32), choose=True)
        for n in range(rng.randint(1, 3))
    ]
    return order.to_bytes(slices).numpy().tobytes()


def _read_order(data: bytes) -> None:
    padded = data.ljust(-(-len(data) // order.WIDTH) * order.WIDTH or order.WIDTH, b"\0")
    packed = torch.frombuffer(bytearray(padded), dtype=torch.uint8).view(-1, order.WIDTH)
    for one in order.from_bytes(packed, 64, HIDDEN):
        assert len(one.rows) <= 64


def _wants(rng: random.Random) -> list[Want]:
    named = np.array(sorted(rng.sample(range(SPAN.first, SPAN.last), 3)), dtype=np.int64)
    return [
        Want(4, named, rng.choice((0.0, 0.7)), rng.random() < 0.5) for _ in range(rng.randint(1, 3))
    ]


def _question(rng: random.Random) -> bytes:
    wants = _wants(rng)
    return letters.question(torch.ones(len(wants), HIDDEN), wants)


def _bytes(data: bytes) -> letters.Bytes:
    return np.frombuffer(data, dtype=np.uint8)


ANSWERED = _wants(random.Random(7))


def _answer(rng: random.Random) -> bytes:
    how = rng.choice(list(letters.How))
    return letters.failure(ANSWERED, SPAN, how)


def _read_answer(data: bytes) -> None:
    """Whoever reads has made sure of the length."""
    size = letters.answer_bytes(ANSWERED, SPAN)
    letters.read_answer(_bytes(data[:size].ljust(size, b"\0")), ANSWERED, SPAN)


def _history(rng: random.Random) -> bytes:
    return History([rng.randrange(300) for _ in range(9)], [5, 6, 5]).pack()


def _chosen(rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 6, 42, 44))
    return bytes(4 * width) if rng.randrange(2) else rng.randbytes(4 * width)


def _request(rng: random.Random) -> bytes:
    return piece_links._REQUEST.pack(1, rng.randbytes(32), rng.randrange(1 << 32))


def _reply(rng: random.Random) -> bytes:
    return piece_links._ANSWER.pack(7, rng.randrange(2)) + rng.randbytes(30)


def _manifest(rng: random.Random) -> bytes:
    sizes = [rng.randint(1, 9) for _ in range(3)]
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    files = (FileSize("one.gguf", sizes[0]), FileSize("two/three.bin", sizes[1] + sizes[2]))
    made = Manifest(b"", ModelId("0" * 64), files, starts, rng.randbytes(96), ((0, 2),))
    return made.encode()


def _announcement(rng: random.Random) -> bytes:
    return announcement(rng.randint(1, 3))


TARGETS: dict[str, Target] = {
    "message": Target(_message, mesh_messages.decode_message),
    "hello": Target(_hello, mesh_messages.decode_hello),
    "rekey": Target(_rekey, rotation.decode_rekey),
    "body": Target(_body, _read_body),
    "plan": Target(_plan, _read_plan, PotluckError),
    "frame": Target(_frame, _read_frame),
    "stream": Target(lambda rng: bytes(16) + bytes(8) + _frame(rng), _read_stream),
    "order": Target(_order, _read_order),
    "question": Target(_question, lambda data: letters.read_question(_bytes(data), HIDDEN, SPAN)),
    "answer": Target(_answer, _read_answer, PotluckError),
    "history": Target(_history, History.unpack),
    "chosen": Target(_chosen, lambda data: from_payload(data, len(data) // 4 or 1)),
    "piece request": Target(_request, piece_links._decode_request),
    "piece answer": Target(_reply, piece_links._decode_answer),
    "manifest": Target(_manifest, decode_manifest),
    "announcement": Target(_announcement, lambda data: list(read_announcements(data, "10.0.0.1"))),
}
