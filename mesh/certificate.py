"""The certificates of a mesh: a CA that every member derives alike, and one leaf per device.

All fields are fixed, so two devices with the same secret make the same CA byte for byte, and the
validity spans 1970 to 2100, because home devices boot with a wrong clock.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import NotOfThisMesh
from mesh.identity import peer_of_key
from mesh.ids import PeerId

NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(2100, 1, 1, tzinfo=UTC)
_CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "potluck mesh")])


def ca_certificate(ca_key: Ed25519PrivateKey) -> x509.Certificate:
    """The same bytes on every device that has the key: Ed25519 signatures hold no chance."""
    return (
        _builder(_CA_NAME, ca_key.public_key(), ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, None)
    )


def leaf_certificate(ca_key: Ed25519PrivateKey, device: Ed25519PublicKey) -> x509.Certificate:
    """Says: this device has known the mesh secret. Its name is the device's PeerId."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(peer_of_key(device)))])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(name, device, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .sign(ca_key, None)
    )


def check_leaf(der: bytes, ca: x509.Certificate) -> PeerId:
    """The device a leaf speaks for. TLS has checked the chain; this checks it is one of ours.

    Raises NotOfThisMesh for another kind of key, a name that is not the key's, or another issuer.
    """
    try:
        leaf = x509.load_der_x509_certificate(der)
        key = leaf.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise NotOfThisMesh("the other device shows a certificate that is not Ed25519")
        leaf.verify_directly_issued_by(ca)
        peer = peer_of_key(key)
        names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if [name.value for name in names] != [str(peer)]:
            raise NotOfThisMesh("the other device's certificate does not name its own key")
    except (ValueError, TypeError, InvalidSignature, x509.UnsupportedGeneralNameType) as error:
        raise NotOfThisMesh(f"the other device's certificate cannot be used: {error}") from None
    return peer


def to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name, key: Ed25519PublicKey, issuer_key: Ed25519PublicKey
) -> x509.CertificateBuilder:
    serial = int.from_bytes(hashlib.sha256(key.public_bytes_raw()).digest()[:8], "big") >> 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_CA_NAME)
        .public_key(key)
        .serial_number(serial + 1)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
