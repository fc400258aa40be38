"""What `potluck doctor` looks at: collected first, judged afterwards."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from mesh.ids import Address, PeerId
from mesh.net.overhear import Announced, Heard


@dataclass(frozen=True, slots=True)
class Adapter:
    """A network interface. `networks` are its IPv4 addresses with their prefixes; `has_ipv6`: it
    would face the home if we spoke IPv6. `why_left_out` is empty for one that does face it.
    """

    name: str
    networks: tuple[str, ...]
    has_ipv6: bool
    why_left_out: str = ""

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(network.partition("/")[0] for network in self.networks)

    def holds(self, host: str) -> bool:
        """Whether an address lies in one of its networks, so that nothing stands in between."""
        return any(
            ipaddress.ip_address(host) in ipaddress.ip_interface(network).network
            for network in self.networks
            if ":" not in host
        )


@dataclass(frozen=True, slots=True)
class Member:
    """Another device that the daemon of this one knows, and whether tensors can flow each way."""

    peer: PeerId
    name: str
    is_here: bool
    address: Address | None
    reaches_us: bool = True
    is_reached: bool = True


@dataclass(frozen=True, slots=True)
class OwnDevice:
    """This device. `tag` names its mesh, and is None while it is in none; `old_tags` are those of
    the secrets that the mesh had before.
    """

    peer: PeerId | None
    tag: str | None
    runs: bool
    answers: bool
    home: str
    protocol: int
    year: int
    listens: tuple[Address, ...] = ()
    members: tuple[Member, ...] = ()
    taken_port: int | None = None  # where the daemon would listen, if it were started
    taken_api_port: int | None = None
    old_tags: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()  # with what lies in its folder, in words


class Outcome(StrEnum):
    """What came of calling an address."""

    MEMBER = "member"  # a device of this mesh
    OWN_KEY = "own-key"
    REFUSED = "refused"
    SILENT = "silent"
    NO_WAY = "no-way"  # the system knows no way there, or nobody has that address
    STRANGER = "stranger"
    OTHER_VERSION = "other-version"
    MUTE = "mute"  # it takes connections and says nothing
    SAYS_NO = "says-no"
    OPEN = "open"  # somebody listens; without a mesh of our own there is no more to ask
    NO_NAME = "no-name"


class Source(StrEnum):
    """From where an address is known."""

    ASKED = "asked"  # a person named it
    HEARD = "heard"  # announced by mDNS
    MEMBER = "member"
    REMEMBERED = "remembered"  # of an earlier run


@dataclass(frozen=True, slots=True)
class Call:
    """`text` is the error in words, or empty. `peer` proved who it is, or was announced there."""

    address: Address
    source: Source
    outcome: Outcome
    peer: PeerId | None = None
    name: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """`asked` is whether a person named a device to look for."""

    device: OwnDevice
    adapters: tuple[Adapter, ...]
    heard: tuple[Heard, ...]
    calls: tuple[Call, ...]
    asked: bool = False

    @property
    def own_hosts(self) -> frozenset[str]:
        return frozenset(host for adapter in self.adapters for host in adapter.hosts)

    @property
    def announced(self) -> tuple[Announced, ...]:
        """By others, on whatever interface; each device once for each place it speaks from."""
        found = {
            (one.source, one.peer): one
            for heard in self.heard
            for one in heard.announced
            if one.peer != self.device.peer or one.source not in self.own_hosts
        }
        return tuple(found.values())

    @property
    def met(self) -> tuple[str, ...]:
        """The names of the devices of this mesh that were reached or are here."""
        names = {one.peer: one.name for one in self.announced}
        known = {one.peer: one.name for one in self.device.members if one.is_here}
        for call in self.calls:
            if call.outcome is Outcome.MEMBER and call.peer is not None:
                known.setdefault(call.peer, names.get(call.peer) or call.name or call.peer.short)
        return tuple(sorted(known.values()))

    def is_near(self, host: str) -> bool:
        """Whether an address lies in a network that this device is in."""
        return any(adapter.holds(host) for adapter in self.adapters)
