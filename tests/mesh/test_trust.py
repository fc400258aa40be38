import os
import ssl
import stat
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from mesh.certificate import ca_certificate, check_leaf, leaf_certificate, to_pem
from mesh.config import StateFolder, write_private
from mesh.errors import ConfigError, NotOfThisMesh
from mesh.identity import Identity
from mesh.keyring import Keyring
from mesh.pairing import format_join_code
from mesh.trust import MeshSecret, MeshTrust, mesh_tag

SECRET = MeshSecret(bytes(range(16)))


def ca_key(secret: MeshSecret) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret.derive("potluck mesh ca 1", 32))


def test_every_device_makes_the_same_ca_byte_for_byte():
    code = (
        "from tests.mesh.test_trust import *;"
        "print(ca_certificate(ca_key(SECRET)).public_bytes(Encoding.DER).hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    own = ca_certificate(ca_key(SECRET)).public_bytes(Encoding.DER)
    assert other.stdout.strip() == own.hex()
    assert ca_certificate(ca_key(MeshSecret.new())).public_bytes(Encoding.DER) != own


def test_certificates_hold_for_devices_with_a_wrong_clock():
    device = Identity.generate().private_key.public_key()
    for certificate in (ca_certificate(ca_key(SECRET)), leaf_certificate(ca_key(SECRET), device)):
        assert certificate.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
        assert certificate.not_valid_after_utc.year == 2100


def test_the_secret_is_kept_and_erased(tmp_path):
    folder = StateFolder.open(tmp_path)
    assert Keyring.load(folder) is None
    SECRET.save(folder)
    assert Keyring.load(folder) == Keyring(SECRET)
    assert stat.S_IMODE(folder.secret.stat().st_mode) == 0o600
    MeshSecret.erase(folder)
    assert Keyring.load(folder) is None


def test_a_damaged_or_public_secret_is_an_error_in_words(tmp_path):
    folder = StateFolder.open(tmp_path)
    write_private(folder.secret, b"\xff\x00 no code")
    with pytest.raises(ConfigError, match="is damaged .*`potluck join"):
        Keyring.load(folder)
    SECRET.save(folder)
    folder.secret.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Keyring.load(folder)


def test_the_join_code_carries_the_secret_and_the_repr_does_not():
    assert MeshSecret.from_join_code(SECRET.join_code) == SECRET
    assert SECRET.join_code == format_join_code(bytes(range(16)))
    assert repr(SECRET) == f"MeshSecret({mesh_tag(SECRET)})"


def test_the_tag_is_stable_short_and_unlike_the_other_derived_bytes():
    assert len(mesh_tag(SECRET)) == 16
    assert mesh_tag(SECRET) == mesh_tag(MeshSecret(bytes(range(16)))) != mesh_tag(MeshSecret.new())
    assert not SECRET.derive("potluck mesh ca 1", 32).hex().startswith(mesh_tag(SECRET))


def test_tls_is_1_3_mutual_and_without_tickets():
    trust = MeshTrust(Identity.generate(), SECRET)
    for context in (trust.server_context, trust.client_context):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert not context.check_hostname
    assert trust.server_context.num_tickets == 0


def test_no_key_is_left_in_a_temporary_file(tmp_path, monkeypatch):
    modes = []
    load = ssl.SSLContext.load_cert_chain

    def watching(context: ssl.SSLContext, name: str) -> None:
        modes.append(stat.S_IMODE(os.stat(name).st_mode))
        load(context, name)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watching)
    MeshTrust(Identity.generate(), SECRET)
    assert modes == [0o600, 0o600]
    assert os.listdir(tmp_path) == []


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ...]:
    """Both ends of a TLS handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    return ends


def test_each_end_learns_the_peer_id_of_the_other():
    one, two = (MeshTrust(Identity.generate(), SECRET) for _ in range(2))
    server, client = handshake(one.server_context, two.client_context)
    assert one.peer_of(server) == two.peer
    assert two.peer_of(client) == one.peer
    assert not client.session_reused


def test_another_mesh_fails_the_handshake():
    one, two = (MeshTrust(Identity.generate(), MeshSecret.new()) for _ in range(2))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(one.server_context, two.client_context)


def test_tls_1_2_fails_the_handshake():
    one, two = (MeshTrust(Identity.generate(), SECRET) for _ in range(2))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(one.server_context, old)
    assert two.peer


def test_a_leaf_must_name_its_own_ed25519_key_and_come_from_this_ca():
    key, ca = ca_key(SECRET), ca_certificate(ca_key(SECRET))
    device, another = (Identity.generate() for _ in range(2))
    right = leaf_certificate(key, device.private_key.public_key())
    assert check_leaf(right.public_bytes(Encoding.DER), ca) == device.peer

    def built(subject: x509.Name, public_key: object, issuer: Ed25519PrivateKey) -> bytes:
        builder = x509.CertificateBuilder(
            ca.subject, subject, public_key, 1, right.not_valid_before_utc, ca.not_valid_after_utc
        )
        return builder.sign(issuer, None).public_bytes(Encoding.DER)

    wrong = [
        built(right.subject, another.private_key.public_key(), key),
        built(right.subject, generate_private_key(SECP256R1()).public_key(), key),
        built(right.subject, device.private_key.public_key(), device.private_key),
        ca.public_bytes(Encoding.DER),
        b"no certificate",
        b"",
    ]
    for der in wrong:
        with pytest.raises(NotOfThisMesh):
            check_leaf(der, ca)
    with pytest.raises(NotOfThisMesh, match="shows no certificate"):
        MeshTrust(device, SECRET).peer_of(None)


def test_a_certificate_is_pem_for_whoever_wants_to_look():
    assert to_pem(ca_certificate(ca_key(SECRET))).startswith(b"-----BEGIN CERTIFICATE-----")
    assert isinstance(ca_certificate(ca_key(SECRET)).signature_hash_algorithm, (type(None), SHA256))
