"""A home network in memory: every message may be lost, late, twice or out of order, by name.

What it models of TCP: a crash closes the connections of a process (its kernel does that) and its
port then refuses; a power cut closes nothing; a host that came back resets what it does not know;
a lost SYN is sent again after 1 and 3 s.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from apps.sim.clock import NOBODY, virtual_loop
from mesh.ids import Address, PeerId

FAST_S = (0.0002, 0.002)  # one way, wired


@dataclass(slots=True)
class Wire:
    """One direction between two devices."""

    cut: bool = False
    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = FAST_S
    reorder: bool = False


class Door(Protocol):
    """A process's end of the network; see `transport`."""

    network: Network
    host: Host
    peer: PeerId
    listening: bool

    @property
    def address(self) -> Address:
        """Where it listens."""

    def enter(self, end: Any) -> None:
        """A connection of this process begins."""

    def left(self, end: Any) -> None:
        """It has ended."""

    def admits(self, route: str, peer: PeerId) -> bool:
        """Whether the peer may open a connection on the route."""

    def serve(self, route: str, end: Any) -> None:
        """Somebody has."""


class Host:
    """A machine at the network. Its port is its own, the same over restarts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.powered = True
        self.door: Door | None = None


class Network:
    """`wires[a, b]` carries from a to b; hosts are named like their devices."""

    def __init__(self, rng: random.Random, *, loses_for_good: bool) -> None:
        """`loses_for_good`: control messages too, which is worse than TCP; see `connection`."""
        self.rng = rng
        self.loses_for_good = loses_for_good
        self.wires: dict[tuple[str, str], Wire] = {}
        self.hosts: dict[str, Host] = {}
        self.messages = 0

    def wire(self, source: str, target: str) -> Wire:
        return self.wires.setdefault((source, target), Wire())

    def heal(self) -> None:
        self.wires.clear()

    def cut(self, *groups: set[str]) -> None:
        """Nothing passes between different groups."""
        for group in groups:
            for other in groups:
                if group is not other:
                    for source in group:
                        for target in other:
                            self.wire(source, target).cut = True

    def passes(self, source: str, target: str) -> bool:
        wire = self.wire(source, target)
        return not wire.cut and self.hosts[target].powered

    def delay_s(self, source: str, target: str) -> float:
        """Of a message that goes now."""
        return self.rng.uniform(*self.wire(source, target).delay_s)

    def loses(self, source: str, target: str) -> bool:
        """Whether a message that goes now is lost on its way, though the wire is whole."""
        return self.rng.random() < self.wire(source, target).drop

    def host(self, name: str) -> Host:
        return self.hosts.setdefault(name, Host(name))

    def later(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        virtual_loop().call_later(delay_s, action, *args, context=NOBODY)
