"""Who may speak: whoever knows the mesh secret, 128 random bits, and nobody else.

From the secret every member derives the same certificate authority, and signs a leaf for its own
key with it. TLS 1.3 then asks both sides for such a leaf before a byte of our protocol is read.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

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
from mesh.limits import MAX_ROSTER
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
    def from_bytes(cls, raw: bytes) -> MeshSecret:
        """The inverse of `raw`; raises BadId."""
        if len(raw) != SECRET_BYTES:
            raise BadId(f"a mesh secret has {SECRET_BYTES} bytes; got {len(raw)}")
        return cls(raw)

    @classmethod
    def load(cls, folder: StateFolder) -> MeshSecret | None:
        """The secret in force of this device's keyring, or None while it is in no mesh."""
        data = read_private(folder.secret)
        if data is None:
            return None
        try:
            return cls.from_join_code(data.decode("ascii", errors="replace").partition("\n")[0])
        except BadId as error:
            raise ConfigError(
                f"{folder.secret} is damaged ({error}); type `potluck leave`, then "
                "`potluck join CODE` with the code that `potluck invite` shows on a member"
            ) from None

    def save(self, folder: StateFolder) -> None:
        """The keyring of a device that knows nothing yet but the secret."""
        write_private(folder.secret, f"{self.join_code}\n".encode())

    @staticmethod
    def erase(folder: StateFolder) -> None:
        erase(folder.secret)

    @property
    def join_code(self) -> str:
        """The secret for people and other devices: as good as the secret itself."""
        return format_join_code(self._raw)

    @property
    def raw(self) -> bytes:
        """The 128 bits themselves, for another device that is to have them."""
        return self._raw

    def derive(self, label: str, length_bytes: int) -> bytes:
        """Key material for one use; different labels give unrelated bytes."""
        return HKDF(SHA256(), length_bytes, salt=None, info=label.encode()).derive(self._raw)

    def __repr__(self) -> str:
        return f"MeshSecret({mesh_tag(self)})"


def mesh_tag(secret: MeshSecret) -> str:
    """Tells meshes apart in public announcements; 128 random bits cannot be guessed from it."""
    return secret.derive("potluck mesh tag 1", 8).hex()


class Closable(Protocol):
    """What a link is to its trust."""

    @property
    def peer(self) -> PeerId: ...

    def abort(self, reason: str) -> None: ...


class MeshTrust:
    """One device's credentials in one mesh: TLS for both directions, and who came through it.

    It knows the links that were made with it, so that they end with it when the secret changes.
    """

    def __init__(self, identity: Identity, secret: MeshSecret) -> None:
        ca_key = Ed25519PrivateKey.from_private_bytes(secret.derive("potluck mesh ca 1", 32))
        self.identity = identity
        self.tag = mesh_tag(secret)
        self._ca = ca_certificate(ca_key)
        leaf = leaf_certificate(ca_key, identity.private_key.public_key())
        self.server_context = _context(ssl.PROTOCOL_TLS_SERVER, self._ca, leaf, identity)
        self.client_context = _context(ssl.PROTOCOL_TLS_CLIENT, self._ca, leaf, identity)
        self.met: set[PeerId] = set()  # who has proved to know the secret, since this was made
        self._links: weakref.WeakSet[Closable] = weakref.WeakSet()
        self._retired: str | None = None

    @property
    def peer(self) -> PeerId:
        return self.identity.peer

    def peer_of(self, tls: ssl.SSLObject | None) -> PeerId:
        """Who is at the other end of a finished handshake; raises NotOfThisMesh."""
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        if not der:
            raise NotOfThisMesh("the other device shows no certificate")
        peer = check_leaf(der, self._ca)
        if len(self.met) < MAX_ROSTER:
            self.met.add(peer)
        return peer

    def opened(self, link: Closable) -> None:
        """A link was made with this trust: it is closed with it."""
        self._links.add(link)
        if self._retired is not None:
            link.abort(self._retired)

    def close_links(self, reason: str, *, keep: Collection[PeerId] = ()) -> None:
        """Ends every link that was made with this trust, but those with the peers in `keep`."""
        for link in list(self._links):
            if link.peer not in keep:
                link.abort(reason)

    def retire(self, reason: str) -> None:
        """The secret has changed: no link of this trust lives on, nor one that is still coming."""
        self._retired = reason
        self.close_links(reason)


def pairing_trust(identity: Identity) -> MeshTrust:
    """TLS between two who share no secret yet: below a CA that everybody can derive. It proves who
    has which key, and says nothing about who may come in.
    """
    return MeshTrust(identity, MeshSecret(b"potluck: pairing"))


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
