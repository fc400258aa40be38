"""What happened, written down by the devices, and a checker that judges it and knows nothing else.

The recorder is called by the nodes' own events; `violations` reads the entries only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from mesh.events import Event, LeaderElected, PeerDied, PeerJoined, PeerLeft, ViewChanged
from mesh.ids import Epoch, PeerId
from mesh.membership import View


class Mark(StrEnum):
    STARTED = "started"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Entry:
    device: str
    at_s: float
    what: Event | Mark


@dataclass(slots=True)
class History:
    entries: list[Entry] = field(default_factory=list)
    peers: dict[str, PeerId] = field(default_factory=dict)

    def record(self, device: str, peer: PeerId, event: Event) -> None:
        self.peers[device] = peer
        self.entries.append(Entry(device, event.at_s, event))

    def mark(self, device: str, at_s: float, mark: Mark) -> None:
        self.entries.append(Entry(device, at_s, mark))

    def of(self, *kinds: type[Event], since_s: float = 0.0) -> list[Entry]:
        return [e for e in self.entries if isinstance(e.what, kinds) and e.at_s >= since_s]


def violations(history: History) -> list[str]:
    """Every breach of what must hold under any fault, in words."""
    found = [*_no_leader_without_winning(history)]
    for device in sorted({entry.device for entry in history.entries}):
        entries = [entry for entry in history.entries if entry.device == device]
        found += _epochs_grow(device, entries)
        found += _incarnations_grow(device, entries, history.peers.get(device))
        found += _gone_stay_gone(device, entries)
    return found


def disagreements(views: dict[str, View]) -> list[str]:
    """How the views of the running devices (by name) differ from one view with a leader."""
    running = sorted(view.me for view in views.values())
    found = []
    for device, view in views.items():
        alive = sorted(member.peer for member in view.alive)
        if alive != running:
            names = [peer.short for peer in alive]
            found.append(f"{device} holds {names} alive, {[p.short for p in running]} run")
        if view.leader not in running:
            found.append(f"{device} follows {view.leader}, which does not run; {view.epoch}")
    epochs = {str(view.epoch) for view in views.values()}
    if len(epochs) > 1:
        found.append(f"different epochs: { ({d: str(v.epoch) for d, v in views.items()}) }")
    return found


def false_deaths(history: History) -> list[str]:
    """Deaths that were declared: none may be, where nothing was done to anybody."""
    return [
        f"{e.device} declared {e.what.peer.short} dead at {e.at_s:.2f} s: {e.what.reason}"
        for e in history.of(PeerDied)
        if isinstance(e.what, PeerDied)
    ]


def _no_leader_without_winning(history: History) -> Iterator[str]:
    """Whoever accepts an epoch has it from its leader, who declared it once and before."""
    declared: dict[Epoch, str] = {}
    for entry in history.of(LeaderElected):
        assert isinstance(entry.what, LeaderElected)
        epoch = entry.what.epoch
        if epoch.leader == history.peers[entry.device]:
            if epoch in declared:
                yield f"{entry.device} declared {epoch} twice"
            declared[epoch] = entry.device
        elif epoch not in declared:
            yield f"{entry.device} accepted {epoch}, which its leader never declared"


def _epochs_grow(device: str, entries: list[Entry]) -> Iterator[str]:
    """Also over restarts; so no counter is ever accepted twice, with one leader or with two."""
    last: Epoch | None = None
    for entry in entries:
        if isinstance(entry.what, LeaderElected):
            epoch = entry.what.epoch
            if last is not None and epoch.counter <= last.counter:
                yield f"{device} accepted {epoch} after {last} at {entry.at_s:.2f} s"
            last = epoch


def _incarnations_grow(device: str, entries: list[Entry], peer: PeerId | None) -> Iterator[str]:
    last, started = -1, False
    for entry in entries:
        if entry.what is Mark.STARTED:
            started = True
        elif isinstance(entry.what, ViewChanged) and peer is not None:
            member = entry.what.view.find(peer)
            assert member is not None, "a view holds its own device"
            if member.incarnation < last or (started and member.incarnation == last):
                yield f"{device} ran as {member.incarnation} after {last} at {entry.at_s:.2f} s"
            last, started = member.incarnation, False


def _gone_stay_gone(device: str, entries: list[Entry]) -> Iterator[str]:
    gone: dict[PeerId, int] = {}
    for entry in entries:
        match entry.what:
            case Mark.STARTED:
                gone.clear()  # a new process has met nobody
            case PeerDied(peer=peer, incarnation=incarnation):
                gone[peer] = incarnation
            case PeerLeft(peer=peer, incarnation=incarnation):
                gone[peer] = incarnation
            case PeerJoined(peer=peer, incarnation=incarnation):
                if incarnation <= gone.get(peer, -1):
                    yield f"{device} brought {peer.short} back as {incarnation}, gone as {gone}"
