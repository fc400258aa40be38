"""What is said by mDNS on 127.0.0.1: nothing of it is believed, and all of it well-formed."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zeroconf import DNSOutgoing, DNSService, DNSText

from mesh.ids import Address
from mesh.limits import LOOK_AROUND_S, MAX_CANDIDATES, MAX_NAME_CHARS, PROTOCOL_VERSION
from mesh.net import overhear as overhear_module
from mesh.net.interfaces import Interface
from mesh.net.overhear import GROUP, PORT, overhear, read_announcements
from tests.mesh.net.test_discovery import LOOPBACK, Heard, a_tag, running


async def test_a_device_and_the_own_question_are_heard():
    there = Heard(a_tag(), 1101)
    async with running(there):
        while True:  # until it has announced itself
            (here,) = await overhear(LOOPBACK, 0.5)
            said = [one for one in here.announced if one.peer == there.own]
            if said:
                break
    assert here.echo
    assert not here.trouble
    assert said[0].addresses == (Address("127.0.0.1", 1101),)
    assert (said[0].source, said[0].name) == ("127.0.0.1", "device 1101")
    assert said[0].protocol == str(PROTOCOL_VERSION)


async def test_an_address_that_is_not_here_is_trouble_in_words():
    (here,) = await overhear([Interface("gone", ("192.0.2.77",))], 0.1)
    assert here.trouble
    assert not here.echo


async def test_a_firewall_that_forbids_sending_is_trouble_in_words(monkeypatch):
    class Walled(socket.socket):
        def sendto(self, *_: object) -> int:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(overhear_module.socket, "socket", Walled)
    (here,) = await overhear(LOOPBACK, 0.1)
    assert here.trouble == "Operation not permitted"


def test_it_listens_longer_than_a_device_takes_to_answer():
    assert LOOK_AROUND_S >= 1.0


def announcement(count: int) -> bytes:
    """What `count` devices say, in one datagram."""
    out = DNSOutgoing(0x8400)
    for number in range(count):
        name = f"{number:x}._potluck._tcp.local."
        text = b"".join(
            bytes([len(part)]) + part
            for part in (b"v=1", b"mesh=m", b"id=" + b"%064x" % number, b"name=\x1b[2J" + b"n" * 99)
        )
        out.add_answer_at_time(DNSService(name, 33, 1, 60, 0, 0, 99, "x.local."), 0)
        out.add_answer_at_time(DNSText(name, 16, 1, 60, text), 0)
    return out.packets()[0]


def test_names_lose_their_control_characters_and_their_length():
    (one,) = read_announcements(announcement(1), "192.168.1.9")
    assert one.name.isprintable()
    assert len(one.name) == MAX_NAME_CHARS
    assert one.addresses == (Address("192.168.1.9", 99),)  # it names none: where it came from


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_any_datagram_is_some_announcements_or_none(data, at, byte):
    whole = bytearray(announcement(2))
    whole[min(at, len(whole) - 1)] = byte
    for datagram in (data, bytes(whole)):
        for one in read_announcements(datagram, "192.168.1.9"):
            assert len(one.peer) == 64


async def test_a_flood_of_devices_is_cut_at_the_cap(monkeypatch):
    """Reliability test 22: a thousand devices that are none."""
    ear = overhear_module._Ear("127.0.0.1", b"?")
    for number in range(1000):
        ear.datagram_received(announcement(3), (f"10.0.{number // 250}.{number % 250}", PORT))
    assert len(ear.announced) == MAX_CANDIDATES
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as liar:
        liar.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        listening = asyncio.ensure_future(overhear(LOOPBACK, 0.2))
        await asyncio.sleep(0)
        for _ in range(10):
            liar.sendto(b"\xff" * 100, (GROUP, PORT))
        (here,) = await listening
    assert here.echo


@pytest.mark.parametrize("text", [b"", b"\xff", b"\x05id=", b"\x03v=1\x00\x00"])
def test_a_torn_text_record_is_read_as_far_as_it_goes(text):
    assert isinstance(overhear_module._properties(text), dict)
