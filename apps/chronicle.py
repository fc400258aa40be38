"""The mesh's events as entries of the timeline, with the names that people know."""

from __future__ import annotations

from typing import Any

from apps.timeline import Timeline
from mesh.events import Event, LeaderElected, PeerDied, PeerJoined, PeerLeft, ViewChanged
from mesh.ids import PeerId
from mesh.membership import View


class Chronicle:
    """Writes what a person may want to know; the rest has entries of its own."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._leader: PeerId | None = None

    def note(self, event: Event, view: View) -> None:
        if isinstance(event, ViewChanged):
            return  # each change of the view has an event of its own
        kind = type(event).__name__
        if isinstance(event, LeaderElected):
            if event.epoch.leader == self._leader:
                kind = "EpochAdvanced"  # the same leader took an epoch for a new plan
            self._leader = event.epoch.leader
        fields = _fields(event, view)
        who = fields.get("name", "")
        text = f"{_WORDS.get(kind, kind)} {who}: {event.reason}"
        self._timeline.note(kind, text, at_s=event.at_s, **fields)


_WORDS = {
    "PeerJoined": "here is",
    "PeerSuspected": "nothing heard of",
    "PeerRefuted": "heard again of",
    "PeerDied": "lost",
    "PeerLeft": "goodbye from",
    "PeerForgot": "forgotten by",
    "LeaderElected": "the leader is",
    "EpochAdvanced": "another epoch of",
    "LinkUp": "linked with",
    "LinkDown": "no link with",
    "Refused": "no link",
}


def _fields(event: Event, view: View) -> dict[str, Any]:
    """Who, and under which epoch."""
    fields: dict[str, Any] = {}
    epoch = getattr(event, "epoch", None)
    peer = getattr(event, "peer", None) or (epoch.leader if epoch else None)
    if peer is not None:
        member = view.find(peer)
        fields = {"peer": str(peer), "name": member.name if member else peer.short}
    if isinstance(event, PeerJoined | PeerDied | PeerLeft):
        fields["incarnation"] = event.incarnation
    if epoch is not None:
        fields |= {"epoch": epoch.counter, "leader": str(epoch.leader)}
    return fields
