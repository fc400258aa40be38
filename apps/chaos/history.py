"""What real devices said, as the lines that the simulator's checker judges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from apps.local_mesh import Device, Event

_WORDS: Final = {"PeerJoined": "joined", "PeerDied": "died", "PeerLeft": "left"}


def lines_of(devices: Iterable[Device]) -> list[dict[str, Any]]:
    """In the order of the clock that all of them share; devices go by their ids."""
    told = [
        {"at_s": event["at_s"], "device": device.device_id, **fields}
        for device in devices
        for event in device.events
        for fields in _told(event)
    ]
    return sorted(told, key=lambda line: line["at_s"])


def _told(event: Event) -> Iterator[dict[str, Any]]:
    match event["event"]:
        case "starting":
            yield {"event": "started"}
        case "ended":
            yield {"event": "ended"}
        case "LeaderElected" | "EpochAdvanced":
            yield {"event": "epoch", "counter": event["epoch"], "leader": event["leader"]}
        case "PeerJoined" | "PeerDied" | "PeerLeft" as kind:
            yield {
                "event": _WORDS[kind],
                "peer": event["peer"],
                "incarnation": event["incarnation"],
            }
