"""What is told of a change in the table of members."""

from __future__ import annotations

from mesh.events import Event, PeerDied, PeerJoined, PeerLeft, PeerRefuted, PeerSuspected
from mesh.membership import Change, ChangeKind


def events_of(change: Change, now_s: float) -> list[Event]:
    member = change.record.member
    peer, incarnation, why = member.peer, member.incarnation, change.reason
    heard_s = change.before.heard_s if change.before else now_s
    match change.kind:
        case ChangeKind.JOINED:
            return [PeerJoined(now_s, why, peer, incarnation)]
        case ChangeKind.RESTARTED:
            before = change.before.member.incarnation if change.before else incarnation - 1
            died = PeerDied(now_s, why, peer, before, now_s - heard_s)
            return [died, PeerJoined(now_s, why, peer, incarnation)]
        case ChangeKind.SUSPECTED:
            return [PeerSuspected(now_s, why, peer)]
        case ChangeKind.REFUTED:
            return [PeerRefuted(now_s, why, peer)]
        case ChangeKind.DIED:
            return [PeerDied(now_s, why, peer, incarnation, now_s - heard_s)]
        case ChangeKind.LEFT:
            return [PeerLeft(now_s, why, peer, incarnation)]
        case ChangeKind.UPDATED:
            return []
