"""The emulated home LAN: what is cut, and what is not, packet by packet."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from apps.bench.lan import Lan, why_not

pytestmark = [pytest.mark.lan, pytest.mark.xdist_group("lan")]
COUNT = 4
PORT = 9
MEND_S = 10.0
LOOK_S = 0.05  # on a bridge of this machine a packet takes well below a millisecond


class Hosts:
    """A UDP socket on each device."""

    def __init__(self, lan: Lan, stack: ExitStack) -> None:
        self.lan = lan
        self._sockets = []
        self._sent = 0
        for index in range(COUNT):
            made = lan.socket_factory(index)(
                (socket.AF_INET, socket.SOCK_DGRAM, 0, "", (lan.address(index), PORT))
            )
            made.bind((lan.address(index), PORT))
            made.settimeout(LOOK_S)
            self._sockets.append(stack.enter_context(made))

    def arrives(self, sender: int, receiver: int) -> bool:
        self._sent += 1
        self._sockets[sender].sendto(b"%d" % self._sent, (self.lan.address(receiver), PORT))
        try:
            while int(self._sockets[receiver].recv(100)) != self._sent:
                pass  # one from before, which waited for the cable
        except OSError:
            return False
        return True

    def heard(self) -> set[tuple[int, int]]:
        pairs = [(a, b) for a in range(COUNT) for b in range(COUNT) if a != b]
        return {pair for pair in pairs if self.arrives(*pair)}

    def all_hear_all(self) -> bool:
        """Within a few seconds: an address that nobody answered for is asked for each second."""
        deadline_s = time.monotonic() + MEND_S
        while time.monotonic() < deadline_s:
            if self.heard() == ALL:
                return True
        return False


ALL = {(a, b) for a in range(COUNT) for b in range(COUNT) if a != b}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        lan = stack.enter_context(Lan(COUNT))
        hosts = Hosts(lan, stack)
        assert hosts.all_hear_all()  # and every address is known to everybody from now on
        yield hosts


def test_two_halves_hear_nothing_of_each_other(hosts: Hosts) -> None:
    hosts.lan.partition([0, 3])
    assert hosts.heard() == {(0, 3), (3, 0), (1, 2), (2, 1)}
    hosts.lan.mend()
    assert hosts.all_hear_all()


def test_one_way_means_one_way(hosts: Hosts) -> None:
    hosts.lan.mute(2)
    assert hosts.heard() == {(a, b) for a, b in ALL if a != 2}
    hosts.lan.mend()
    assert hosts.all_hear_all()


def test_a_cable_out_cuts_both_ways_until_it_is_in_again(hosts: Hosts) -> None:
    hosts.lan.unplug(1)
    assert hosts.heard() == {(a, b) for a, b in ALL if 1 not in (a, b)}
    hosts.lan.replug(1)
    assert hosts.all_hear_all()


def test_a_lossy_link_loses_about_as_much_as_it_should(hosts: Hosts) -> None:
    """Half of 100 packets; fewer than 25 or more than 75 come once in a few million runs."""
    hosts.lan.lossy(0, 50)
    came = sum(hosts.arrives(1, 0) for _ in range(100))
    hosts.lan.mend()
    assert 25 <= came <= 75
    assert hosts.arrives(1, 0)


def test_a_link_that_was_shaped_is_fast_again(hosts: Hosts) -> None:
    hosts.lan.shape(1, 1, 1)
    hosts.lan.unshape(1)
    hosts.lan.shape(1, 2, 2)  # which fails where something is left of the first
    hosts.lan.unshape(1)
    assert hosts.all_hear_all()
