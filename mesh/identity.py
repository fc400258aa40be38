"""Who a device is: an Ed25519 key that never leaves it, and the PeerId that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.config import StateFolder, read_private, write_private
from mesh.errors import ConfigError
from mesh.ids import PeerId

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """The key stays out of `repr`, so that it reaches no log."""

    peer: PeerId
    _key: bytes

    @classmethod
    def generate(cls) -> Identity:
        return cls.from_key(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def from_key(cls, raw: bytes) -> Identity:
        return cls(peer_of_key(Ed25519PrivateKey.from_private_bytes(raw).public_key()), raw)

    @classmethod
    def load(cls, folder: StateFolder) -> Identity:
        """The device's identity; on its first use it is made and kept."""
        raw = read_private(folder.key)
        if raw is None:
            identity = cls.generate()
            write_private(folder.key, identity._key)
            return identity
        if len(raw) != KEY_BYTES:
            raise ConfigError(
                f"{folder.key} should hold {KEY_BYTES} bytes and holds {len(raw)}; restore it from "
                "a backup, or remove it to start as a new device"
            )
        return cls.from_key(raw)

    @property
    def private_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._key)

    def __repr__(self) -> str:
        return f"Identity({self.peer.short})"


def peer_of_key(key: Ed25519PublicKey) -> PeerId:
    return PeerId.of_public_key(key.public_bytes_raw())
