"""Which of a machine's network interfaces face the home, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import ifaddr

from mesh.errors import ConfigError

SYSFS = Path("/sys/class/net")
_IFF_UP = 1

# Traffic of the home never passes these; a person may still name one.
_SKIPPED_NAMES = (
    ("lo lo0", "loopback reaches only this machine (`--interface lo` uses it)"),
    ("docker* br-* cni* podman* lxcbr* lxdbr* flannel*", "a bridge between containers"),
    ("veth* cali*", "the cable of a container"),
    ("virbr* vnet* vmnet* vboxnet*", "a bridge between virtual machines"),
    ("tun* tap* wg* tailscale* utun* zt* ppp* ipsec*", "a tunnel (VPN)"),
    ("ifb* dummy* nlmon* sit* gre* ip6tnl*", "a device of the kernel's own"),
    ("awdl* llw* anpi* gif* stf* ap[0-9]*", "a device of the system's own"),
)


@dataclass(frozen=True, slots=True)
class Interface:
    """`hosts` are its IPv4 addresses. IPv6 would add its own here, with the scope of `index`."""

    name: str
    hosts: tuple[str, ...]
    index: int | None = None


@dataclass(frozen=True, slots=True)
class SkippedInterface:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Interfaces:
    chosen: tuple[Interface, ...]
    skipped: tuple[SkippedInterface, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every address to listen at."""
        return tuple(host for interface in self.chosen for host in interface.hosts)


def choose_interfaces(
    names: Sequence[str] | None = None,
    *,
    present: Iterable[Interface] | None = None,
    sysfs: Path = SYSFS,
) -> Interfaces:
    """The named interfaces, or by default those that may face the home.

    Raises ConfigError for a name that is not there, or has no address yet.
    """
    there = {
        found.name: found for found in (list_interfaces(sysfs) if present is None else present)
    }
    if names:
        return _named(names, there)
    chosen, skipped = [], []
    for name, interface in sorted(there.items()):
        reason = _why_not(interface, sysfs)
        if reason is None:
            chosen.append(interface)
        else:
            skipped.append(SkippedInterface(name, reason))
    return Interfaces(tuple(chosen), tuple(skipped))


def list_interfaces(sysfs: Path = SYSFS) -> tuple[Interface, ...]:
    """Every interface of this machine, also those without an address."""
    found: dict[str, Interface] = {}
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        name = adapter.name.partition(":")[0]  # `eth0:1` is one more address of eth0
        hosts = tuple(str(ip.ip) for ip in adapter.ips if ip.is_IPv4)
        before = found.get(name, Interface(name, (), adapter.index))
        found[name] = Interface(name, before.hosts + hosts, before.index)
    if sysfs.is_dir():
        for entry in sysfs.iterdir():
            if entry.is_dir():  # `bonding_masters` is a file
                found.setdefault(entry.name, Interface(entry.name, ()))
    return tuple(found.values())


def has_carrier(name: str, sysfs: Path = SYSFS) -> bool:
    """Whether a cable is in, or Wi-Fi joined; True where the system does not tell."""
    try:
        return (sysfs / name / "carrier").read_text().strip() != "0"
    except OSError:  # no such file here, or the interface is down: its addresses tell enough
        return True


def skipped_by_name(name: str) -> str | None:
    """Why an interface of this name never faces the home, whatever addresses it has."""
    for patterns, reason in _SKIPPED_NAMES:
        if any(fnmatch(name, pattern) for pattern in patterns.split()):
            return reason
    return None


def _named(names: Sequence[str], there: dict[str, Interface]) -> Interfaces:
    for name in names:
        if name not in there:
            raise ConfigError(
                f"there is no network interface {name!r} here; "
                f"there are: {', '.join(sorted(there))}"
            )
        if not there[name].hosts:
            raise ConfigError(
                f"the network interface {name!r} has no IPv4 address; is its cable in, or its "
                "Wi-Fi joined?"
            )
    skipped = [
        SkippedInterface(name, "not among the interfaces asked for")
        for name in sorted(there)
        if name not in names
    ]
    return Interfaces(tuple(there[name] for name in dict.fromkeys(names)), tuple(skipped))


def _why_not(interface: Interface, sysfs: Path) -> str | None:
    if reason := skipped_by_name(interface.name):
        return reason
    if not _is_up(interface.name, sysfs):
        return "switched off"
    if not interface.hosts:
        return "no IPv4 address: its cable is out, or its Wi-Fi not joined"
    return None


def _is_up(name: str, sysfs: Path) -> bool:
    try:
        return bool(int((sysfs / name / "flags").read_text(), 16) & _IFF_UP)
    except (OSError, ValueError):  # no sysfs on this system
        return True
