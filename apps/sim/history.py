"""What happened in a simulated home, as the devices and the faults tell it: lines for a checker.

Each line is a JSON object with `at_s`, `device` ("" for the home itself) and `event`; what else it
holds stands with `apps.sim.check`, which reads nothing but these lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.events import (
    Event,
    LeaderElected,
    LinkDown,
    LinkUp,
    PeerDied,
    PeerForgot,
    PeerJoined,
    PeerLeft,
    PeerRefuted,
    PeerSuspected,
    Refused,
    ViewChanged,
)
from mesh.ids import PeerId
from mesh.membership import View

HOME = ""  # what happens to no device in particular


@dataclass(frozen=True, slots=True)
class Said:
    """Something beside the mesh's own events; `fields` are plain data."""

    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    device: str
    at_s: float
    what: Event | Said


@dataclass(slots=True)
class History:
    names: dict[PeerId, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def record(self, device: str, event: Event) -> None:
        self.entries.append(Entry(device, event.at_s, event))

    def say(self, device: str, at_s: float, event: str, **fields: Any) -> None:
        self.entries.append(Entry(device, at_s, Said(event, fields)))

    def of(self, *kinds: type[Event], since_s: float = 0.0) -> list[Entry]:
        return [e for e in self.entries if isinstance(e.what, kinds) and e.at_s >= since_s]

    def said(self, *events: str, since_s: float = 0.0) -> list[dict[str, Any]]:
        """The lines of these events."""
        return [
            line for line in self.lines() if line["event"] in events and line["at_s"] >= since_s
        ]

    def lines(self) -> Iterator[dict[str, Any]]:
        for entry in self.entries:
            event, fields = self._told(entry.what)
            yield {"at_s": entry.at_s, "device": entry.device, "event": event, **fields}

    def text(self) -> str:
        """JSON, a line an entry."""
        return "".join(json.dumps(line) + "\n" for line in self.lines())

    def digest(self) -> str:
        """The same for the same seed, on every machine with the same software."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def _told(self, what: Event | Said) -> tuple[str, Mapping[str, Any]]:
        match what:
            case Said("plan", fields):
                devices = [self.name(PeerId(peer)) for peer in fields["devices"]]
                leader = self.name(PeerId(fields["leader"]))
                return "plan", {**fields, "devices": devices, "leader": leader}
            case Said(event, fields):
                return event, fields
            case LeaderElected(epoch=epoch):
                return "epoch", {"counter": epoch.counter, "leader": self.name(epoch.leader)}
            case ViewChanged(view=view):
                return "view", self.seen(view)
            case PeerJoined() | PeerDied() | PeerLeft():
                word = {PeerJoined: "joined", PeerDied: "died", PeerLeft: "left"}[type(what)]
                peer = self.name(what.peer)
                return word, {"peer": peer, "incarnation": what.incarnation, "why": what.reason}
            case PeerSuspected() | PeerRefuted() | PeerForgot() | LinkUp() | LinkDown():
                return type(what).__name__, {"peer": self.name(what.peer), "why": what.reason}
            case Refused(address=address):
                return "refused", {"address": str(address), "why": what.reason}

    def seen(self, view: View) -> dict[str, Any]:
        """A view as plain data."""
        me = view.find(view.me)
        assert me is not None, "a view holds its own device"
        return {
            "alive": sorted(self.name(member.peer) for member in view.alive),
            "leader": None if view.leader is None else self.name(view.leader),
            "counter": None if view.epoch is None else view.epoch.counter,
            "incarnation": me.incarnation,
        }

    def name(self, peer: PeerId) -> str:
        return self.names.get(peer, peer.short)
