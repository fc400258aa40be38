"""A home LAN on one machine: a bridge and N devices, each in a network namespace of its own.

Nothing is added to the machine's own network, and no namespace has a way out. Needs root and
iproute2 (and nftables for silent cuts); where they are missing, `why_not` says so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "nft"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (apt-get install iproute2 nftables)"
    probe = f"plq{os.getpid()}"
    made = _tried("ip", "netns", "add", probe)
    if made.returncode != 0:
        return f"no namespace can be made: {made.stderr.strip()}"
    _run("ip", "netns", "del", probe)
    return None


@dataclass(slots=True)
class Lan:
    """`count` devices on one switch. Device i has the address 10.77.0.(i+1) on eth0."""

    count: int
    prefix: str = field(default_factory=lambda: f"pl{os.getpid() % 100000}")

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:  # Ctrl-C as well: half a network must not stay on the machine
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def namespace(self, index: int) -> str:
        return f"{self.prefix}-{index}"

    def address(self, index: int) -> str:
        return f"10.77.0.{index + 1}"

    def launcher(self, index: int) -> tuple[str, ...]:
        """Put before a command, it runs on that device."""
        return ("ip", "netns", "exec", self.namespace(index))

    def unplug(self, index: int) -> None:
        """Cable out: the device sees no carrier, the others see nothing at all."""
        _run("ip", "-n", self._switch, "link", "set", f"p{index}", "down")

    def replug(self, index: int) -> None:
        _run("ip", "-n", self._switch, "link", "set", f"p{index}", "up")

    def partition(self, side: Collection[int]) -> None:
        """Two halves that hear nothing of each other; every carrier stays up."""
        other = [index for index in range(self.count) if index not in side]
        for here, there in ((side, other), (other, side)):
            self._drop(f"iifname {_ports(here)} oifname {_ports(there)}")

    def mute(self, index: int) -> None:
        """One way only: the device hears the others, and nothing that it sends arrives."""
        self._drop(f"iifname {_ports([index])}")

    def lossy(self, index: int, percent: int) -> None:
        """So many of the packets from and to the device get lost, by chance."""
        for side in ("iifname", "oifname"):
            self._drop(f"{side} {_ports([index])} numgen random mod 100 < {percent}")

    def mend(self) -> None:
        """Every packet arrives again, whatever was cut, muted or lossy."""
        _run(*self._nft("flush ruleset"))

    def shape(self, index: int, up_mbit: int, down_mbit: int) -> None:
        """Limits a device's link in each direction."""
        _shape(self.namespace(index), "eth0", up_mbit)
        _shape(self._switch, f"p{index}", down_mbit)

    def unshape(self, index: int) -> None:
        """As fast again as the machine can."""
        _run("tc", "-n", self.namespace(index), "qdisc", "del", "dev", "eth0", "root")
        _run("tc", "-n", self._switch, "qdisc", "del", "dev", f"p{index}", "root")

    def socket_factory(self, index: int) -> Any:
        """For aiohttp's TCPConnector: sockets that live on that device."""

        def make(address: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, _ = address
            with _inside(self.namespace(index)):
                return socket.socket(family, kind, protocol)

        return make

    @property
    def _switch(self) -> str:
        return f"{self.prefix}-sw"

    def _drop(self, what: str) -> None:
        """In the switch, of what it forwards; adding what is there already is no error."""
        _run(*self._nft("add table bridge faults"))
        chain = "{ type filter hook forward priority 0; policy accept; }"
        _run(*self._nft(f"add chain bridge faults forward {chain}"))
        _run(*self._nft(f"add rule bridge faults forward {what} counter drop"))

    def _nft(self, rule: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._switch, "nft", rule)

    def _build(self) -> None:
        switch = self._switch
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "set", "lo", "up")
        options = ("mcast_snooping", "0", "stp_state", "0", "forward_delay", "0")
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge", *options)
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        for index in range(self.count):
            device, port = self.namespace(index), f"p{index}"
            _run("ip", "netns", "add", device)
            _run("ip", "-n", device, "link", "set", "lo", "up")
            peer = ("peer", "name", "eth0", "netns", device)
            _run("ip", "-n", switch, "link", "add", port, "type", "veth", *peer)
            _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", device, "addr", "add", f"{self.address(index)}/24", "dev", "eth0")
            _run("ip", "-n", device, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for name in (*(self.namespace(index) for index in range(self.count)), self._switch):
            _tried("ip", "netns", "del", name)


def _ports(indices: Iterable[int]) -> str:
    return "{ " + ", ".join(f"p{index}" for index in indices) + " }"


def _shape(namespace: str, device: str, mbit: int) -> None:
    tc = ("tc", "-n", namespace)
    _tried(*tc, "qdisc", "del", "dev", device, "root")
    _run(*tc, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "10")
    burst = ("burst", "128k", "cburst", "128k", "quantum", "60000")
    rate = ("htb", "rate", f"{mbit}mbit", *burst)
    _run(*tc, "class", "add", "dev", device, "parent", "1:", "classid", "1:10", *rate)


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread, for a moment, in another network namespace."""
    with Path("/proc/self/ns/net").open() as own, Path(f"/run/netns/{namespace}").open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(own.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str) -> None:
    done = _tried(*command)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _tried(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own words
