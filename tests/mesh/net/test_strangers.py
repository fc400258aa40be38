"""Test 19: whoever is not of this mesh, whatever it shows: no handler runs, and it is told at once.

What `rotate` shuts out is in test_rotation; here the same certificates at a single port, measured.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import time

import pytest

from mesh.certificate import ca_certificate, leaf_certificate
from mesh.identity import Identity
from mesh.net.rekey import REKEY_ROUTE
from mesh.trust import MeshSecret, MeshTrust, _context, pairing_trust
from tests.mesh.home import Device, device

ANSWER_S = 0.05  # from connecting to knowing that one is out
TRIES = 15
OLD, NEW = MeshSecret.new(), MeshSecret.new()


def no_certificate(member: Identity) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def another_mesh(member: Identity) -> ssl.SSLContext:
    return MeshTrust(Identity.generate(), MeshSecret.new()).client_context


def same_id_self_signed(member: Identity) -> ssl.SSLContext:
    """A member's own key even, and our CA's name: only the CA's signature is missing."""
    ca = ca_certificate(member.private_key)
    leaf = leaf_certificate(member.private_key, member.private_key.public_key())
    return _context(ssl.PROTOCOL_TLS_CLIENT, ca, leaf, member)


def old_leaf(member: Identity) -> ssl.SSLContext:
    return MeshTrust(member, OLD).client_context


def fresh_key_below_the_old_ca(member: Identity) -> ssl.SSLContext:
    return MeshTrust(Identity.generate(), OLD).client_context


def the_pairing_ca(member: Identity) -> ssl.SSLContext:
    """Everybody can derive that one; it must open nothing but the pairing door."""
    return pairing_trust(member).client_context


@pytest.mark.parametrize(
    "shown",
    [
        no_certificate,
        another_mesh,
        same_id_self_signed,
        old_leaf,
        fresh_key_below_the_old_ca,
        the_pairing_ca,
    ],
    ids=lambda shown: shown.__name__,
)
async def test_a_stranger_is_answered_at_once_and_reaches_no_handler(shown) -> None:
    """Test 19: handler never runs; answer <= 50 ms."""
    ran: list[str] = []
    async with device(OLD) as here:

        async def handler(websocket) -> None:
            ran.append(websocket.peer)

        for route in ("control", "tensor", "pieces", REKEY_ROUTE):
            here.server.route(route, handler, max_bytes=100)
        context = shown(here.trust.identity)
        here.server.trust = MeshTrust(here.trust.identity, NEW)  # OLD was rotated away
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        took_s = [await knock(here, context) for _ in range(TRIES)]
        await here.until(lambda: len(here.refused) >= TRIES)
        p50, worst = statistics.median(took_s), max(took_s)
        print(
            f"{shown.__name__}: refused in {p50 * 1000:.1f} ms (p50), {worst * 1000:.1f} ms (max)"
        )
        assert p50 <= ANSWER_S
        assert all("TLS handshake failed" in reason for _, reason in here.refused)
        assert not ran
        assert here.server.unknown_sockets == 0


async def knock(here: Device, context: ssl.SSLContext) -> float:
    """Asks for a websocket with this certificate; how long until the other side had ended it."""
    began_s = time.monotonic()
    said = b""
    try:
        reader, writer = await asyncio.open_connection(
            here.address.host, here.address.port, ssl=context, server_hostname=""
        )
        writer.write(b"GET /v2/control HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
        said = await reader.read()
        writer.transport.abort()
    except OSError:  # an alert of TLS, or a reset
        pass
    assert said == b"", "not a byte of our protocol"
    return time.monotonic() - began_s
