"""Who may speak: whoever knows the mesh secret, 128 random bits, and nobody else.

From the secret every member derives the same certificate authority, and signs a leaf for its own
key with it. TLS 1.3 then asks both sides for such a leaf before a byte of our protocol is read.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.certificate import ca_certificate, check_leaf, leaf_certificate, to_pem
from mesh.config import StateFolder, erase, read_private, write_private
from mesh.errors import BadId, ConfigError, NotOfThisMesh
from mesh.identity import Identity
from mesh.ids import PeerId
from mesh.pairing import SECRET_BYTES, format_join_code, parse_join_code


@dataclass(frozen=True, slots=True)
class MeshSecret:
    """Whoever has it is a member. It stays out of `repr`, so that it reaches no log."""

    _raw: bytes

    @classmethod
    def new(cls) -> MeshSecret:
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def from_join_code(cls, text: str) -> MeshSecret:
        """Raises BadId."""
        return cls(parse_join_code(text))

    @classmethod
    def load(cls, folder: StateFolder) -> MeshSecret | None:
        """The secret of the mesh this device is in, or None while it is in none."""
        data = read_private(folder.secret)
        if data is None:
            return None
        try:
            return cls.from_join_code(data.decode("ascii", errors="replace"))
        except BadId as error:
            raise ConfigError(
                f"{folder.secret} is damaged ({error}); "
                "type `potluck join CODE` with the code that `potluck invite` shows on a member"
            ) from None

    def save(self, folder: StateFolder) -> None:
        write_private(folder.secret, f"{self.join_code}\n".encode())

    @staticmethod
    def erase(folder: StateFolder) -> None:
        erase(folder.secret)

    @property
    def join_code(self) -> str:
        """The secret for people and other devices: as good as the secret itself."""
        return format_join_code(self._raw)

    def derive(self, label: str, length_bytes: int) -> bytes:
        """Key material for one use; different labels give unrelated bytes."""
        return HKDF(SHA256(), length_bytes, salt=None, info=label.encode()).derive(self._raw)

    def __repr__(self) -> str:
        return f"MeshSecret({mesh_tag(self)})"


def mesh_tag(secret: MeshSecret) -> str:
    """Tells meshes apart in public announcements; 128 random bits cannot be guessed from it."""
    return secret.derive("potluck mesh tag 1", 8).hex()


class MeshTrust:
    """One device's credentials in one mesh: TLS for both directions, and who came through it."""

    def __init__(self, identity: Identity, secret: MeshSecret) -> None:
        ca_key = Ed25519PrivateKey.from_private_bytes(secret.derive("potluck mesh ca 1", 32))
        self.identity = identity
        self.tag = mesh_tag(secret)
        self._ca = ca_certificate(ca_key)
        leaf = leaf_certificate(ca_key, identity.private_key.public_key())
        self.server_context = _context(ssl.PROTOCOL_TLS_SERVER, self._ca, leaf, identity)
        self.client_context = _context(ssl.PROTOCOL_TLS_CLIENT, self._ca, leaf, identity)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer

    def peer_of(self, tls: ssl.SSLObject | None) -> PeerId:
        """Who is at the other end of a finished handshake; raises NotOfThisMesh."""
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        if not der:
            raise NotOfThisMesh("the other device shows no certificate")
        return check_leaf(der, self._ca)


def _context(
    protocol: int, ca: x509.Certificate, leaf: x509.Certificate, identity: Identity
) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who it is follows from the key, not from the address
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no resumption: a secret that was rotated away is out at once
    context.load_verify_locations(cadata=ca.public_bytes(Encoding.DER))
    _load_chain(context, leaf, identity)
    return context


def _load_chain(context: ssl.SSLContext, leaf: x509.Certificate, identity: Identity) -> None:
    """OpenSSL reads a key only from a file: one that nobody else can open, gone right after."""
    pem = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with tempfile.NamedTemporaryFile(prefix="potluck-") as file:  # made with mode 0600
        file.write(pem + to_pem(leaf))
        file.flush()
        context.load_cert_chain(file.name)
