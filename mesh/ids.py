"""Identifiers as types, so that no function takes a bare string for a device or a session."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from mesh.errors import BadId

PEER_ID_HEX = 64  # SHA-256 of an Ed25519 public key
UUID_HEX = 32
# Where new ids come from: the system's randomness, or a seed's in a simulated home.
CHANCE: Final[ContextVar[Callable[[int], bytes]]] = ContextVar(
    "chance", default=secrets.token_bytes
)


def _checked_hex(text: str, length: int, what: str) -> str:
    if len(text) != length or text.strip("0123456789abcdef"):  # what is left is none of these
        raise BadId(f"{what} must be {length} lower-case hexadecimal digits, got {text[:80]!r}")
    return text


class PeerId(str):
    """A device's identity: the SHA-256 of its raw Ed25519 public key, 64 hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Raises BadId unless `text` is 64 lower-case hexadecimal digits."""
        return cls(_checked_hex(text, PEER_ID_HEX, "a peer id"))

    @classmethod
    def of_public_key(cls, raw: bytes) -> PeerId:
        return cls(hashlib.sha256(raw).hexdigest())

    @property
    def short(self) -> str:
        """The first 8 digits: for people and logs, never for comparison."""
        return self[:8]


class SessionId(str):
    """One conversation's generation; 128 random bits as 32 hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def new(cls) -> SessionId:
        return cls(CHANCE.get()(UUID_HEX // 2).hex())

    @classmethod
    def parse(cls, text: str) -> SessionId:
        return cls(_checked_hex(text, UUID_HEX, "a session id"))


class PlanId(str):
    """One planning decision; 128 random bits as 32 hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def new(cls) -> PlanId:
        return cls(CHANCE.get()(UUID_HEX // 2).hex())

    @classmethod
    def parse(cls, text: str) -> PlanId:
        return cls(_checked_hex(text, UUID_HEX, "a plan id"))


class ModelId(str):
    """A model file's fingerprint (header, size and a sample of each tensor), 64 hex digits."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> ModelId:
        return cls(_checked_hex(text, PEER_ID_HEX, "a model id"))


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """The fencing number: who leads, and the how-manieth leadership it is. Compared as a pair."""

    counter: int
    leader: PeerId

    def __str__(self) -> str:
        return f"{self.counter}/{self.leader.short}"


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a device listens: an IP address (never a host name once resolved) and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `HOST:PORT` or `[IPV6]:PORT`; raises BadId on anything else."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit():
            raise BadId(f"an address is HOST:PORT, such as 192.168.1.20:8478; got {text!r}")
        if not 0 < int(port) < 65536:
            raise BadId(f"a port lies between 1 and 65535; got {port} in {text!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
