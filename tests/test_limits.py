"""Limits that bound what a stranger or a peer takes from us: at the limit, and one beyond."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from apps.sim.clock import run_virtual
from mesh.control_links import ControlLinks
from mesh.door import Door
from mesh.errors import ProtocolError
from mesh.ids import Address, ModelId, PeerId, SessionId
from mesh.limits import (
    HELLO_TIMEOUT_S,
    MAX_MANIFEST_BYTES,
    MAX_MODEL_FILES,
    MAX_PIECE_BYTES,
    MAX_PIECES,
    MAX_SESSIONS,
    REQUEST_TIMEOUT_S,
    TLS_HANDSHAKE_TIMEOUT_S,
)
from mesh.messages import Hello
from mesh.nursery import Nursery
from runtime.stage import Slice
from runtime.stored.layout import FileSize
from runtime.stored.manifest import Manifest, decode_manifest
from runtime.walks.order import from_bytes, to_bytes

ME, OTHER = PeerId("a" * 64), PeerId("b" * 64)


def encoded(files: int, piece_bytes: int = 1) -> bytes:
    """A manifest of so many files of one piece each."""
    sizes = tuple(FileSize(f"f{number}", piece_bytes) for number in range(files))
    starts = np.arange(files + 1, dtype=np.int64) * piece_bytes
    digests = hashlib.sha256(b"x").digest() * files
    return Manifest(b"", ModelId("0" * 64), sizes, starts, digests, ()).encode()


def test_a_manifest_has_so_many_files_and_no_more() -> None:
    assert len(decode_manifest(encoded(MAX_MODEL_FILES)).files) == MAX_MODEL_FILES
    with pytest.raises(ProtocolError, match="no manifest"):
        decode_manifest(encoded(MAX_MODEL_FILES + 1))


def test_a_piece_is_no_larger_than_a_message() -> None:
    assert decode_manifest(encoded(1, MAX_PIECE_BYTES)).size_of(0) == MAX_PIECE_BYTES
    with pytest.raises(ProtocolError, match=f"1 to {MAX_PIECE_BYTES} bytes"):
        decode_manifest(encoded(1, MAX_PIECE_BYTES + 1))


def test_a_manifest_that_claims_more_pieces_than_any_model_has_is_not_read() -> None:
    data = bytearray(encoded(1))
    at = len(b"potluck-pieces-1") + 32 + 2 + 4
    data[at : at + 4] = (MAX_PIECES + 1).to_bytes(4, "little")
    with pytest.raises(ProtocolError, match="no manifest"):
        decode_manifest(bytes(data))
    with pytest.raises(ProtocolError, match=f"at most {MAX_MANIFEST_BYTES}"):
        decode_manifest(bytes(MAX_MANIFEST_BYTES + 1))


def test_an_order_is_for_so_many_conversations_and_no_more() -> None:
    def order(count: int) -> torch.Tensor:
        rows = torch.ones(1, 1, dtype=torch.int32)
        return to_bytes([Slice(SessionId(f"{n:032x}"), 0, rows, choose=True) for n in range(count)])

    assert len(from_bytes(order(MAX_SESSIONS), 1000, 8)) == MAX_SESSIONS
    with pytest.raises(ProtocolError, match=f"1 to {MAX_SESSIONS} runs"):
        from_bytes(order(MAX_SESSIONS + 1), 1000, 8)


def test_nobody_holds_a_place_for_longer_than_five_seconds_a_phase() -> None:
    assert max(TLS_HANDSHAKE_TIMEOUT_S, REQUEST_TIMEOUT_S, HELLO_TIMEOUT_S) <= 5.0


def test_a_member_that_does_not_greet_is_closed_when_its_time_is_over() -> None:
    assert run_virtual(silence_s()) == pytest.approx(HELLO_TIMEOUT_S, abs=0.1)


class Mute:
    """A channel whose other end says nothing."""

    peer = OTHER
    dialled = False
    remote = Address("10.0.0.2", 4711)

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def send(self, data: bytes) -> None:
        """Goes nowhere."""

    async def receive(self) -> bytes:
        await self.closed.wait()
        return b""

    async def close(self, reason: str) -> None:
        self.closed.set()


class Knocks:
    """A transport that lets a test knock."""

    async def listen(self, accept: object) -> Address:
        self.accept = accept
        return Address("10.0.0.1", 8478)


async def silence_s() -> float:
    """How long a mute member is listened to."""
    transport, mute = Knocks(), Mute()
    async with asyncio.TaskGroup() as tasks:
        nursery = Nursery()
        nursery.open(tasks)
        hello = Hello(1, ME, "attic", 1, 1, None, None, ())
        nothing: dict[str, Any] = dict.fromkeys(
            ("refusal", "on_up", "on_message", "on_down", "on_parked", "on_retired"),
            lambda *_: None,
        )
        links = ControlLinks(ME, nursery, lambda: hello, **nothing)
        door = Door(transport, links, nursery, lambda _: None, lambda *_: None)
        await door.listen()
        door.open()
        began_s = asyncio.get_running_loop().time()
        await transport.accept(mute)
        await mute.closed.wait()
        return asyncio.get_running_loop().time() - began_s
