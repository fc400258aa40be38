"""Homes of many devices, in virtual time: what an end of one costs, and whether anybody is wronged.

    python -m tests.sim.crowds --devices 17 50 200 1000 [--loss 0.05]

prints one JSON line for each number of devices, and exits 1 where somebody was wronged. A thousand
take minutes, so `make test` has fewer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.history import History
from apps.sim.home import Device, Home
from apps.sim.network import Wire
from mesh.events import Event, LeaderElected, PeerDied, PeerLeft, PeerRefuted, PeerSuspected
from mesh.ids import PeerId
from mesh.membership import Member, Membership, Record
from mesh.messages import Health

TOLD = (LeaderElected, PeerDied, PeerLeft, PeerRefuted, PeerSuspected)
SETTLE_S = 5.0
WATCH_S = 12.0  # after each end; the slowest death of a thousand is seen well before
QUIET_S = 10.0


class Extract(History):
    """A thousand views of a thousand members would fill the memory."""

    def record(self, device: str, event: Event) -> None:
        if isinstance(event, TOLD):
            super().record(device, event)


def long_up(devices: int, seed: int = 0, loss: float = 0.0) -> Home:
    """A home whose devices all know each other, and have no links yet."""
    home = Home(devices, seed)
    home.history = Extract(home.history.names)
    if loss:
        _spoil(home, loss)
    records = {
        device.peer: Record(
            Member(device.peer, device.name, 1, Health.ALIVE, home.address(device)), 1, 0.0
        )
        for device in home.devices.values()
    }
    for device in home.devices.values():
        device.hints = ()
        device.start()
        assert device.node is not None
        members = device.node._core._members
        members.table = Membership(
            members.me, {p: r for p, r in records.items() if p != device.peer}
        )
    return home


def _spoil(home: Home, loss: float) -> None:
    for one in home.devices:
        for other in home.devices:
            if one != other:
                home.network.wires[one, other] = Wire(drop=loss)


async def end_of(home: Home, victim: Device, how: str) -> dict[str, Any]:
    """One device goes; how long until the first and the last of the others knew."""
    since_s = virtual_loop().time()
    await {"crash": victim.crash, "power": victim.power_off, "leave": victim.leave}[how]()
    await asyncio.sleep(WATCH_S)
    ends = home.history.of(PeerDied, PeerLeft, since_s=since_s)
    seen = sorted(entry.at_s - since_s for entry in ends if about(entry.what) == victim.peer)
    return {
        "how": how,
        "others": len(home.running),
        "seen_by": len({e.device for e in ends if about(e.what) == victim.peer}),
        "first_s": round(seen[0], 2),
        "p50_s": round(seen[len(seen) // 2], 2),
        "last_s": round(seen[-1], 2),
        "false_deaths": wrong(home, PeerDied, since_s, victim),
        "false_suspicions": wrong(home, PeerSuspected, since_s, victim),
    }


def about(event: Any) -> PeerId:
    peer: PeerId = event.peer
    return peer


def wrong(home: Home, kind: type[Event], since_s: float, victim: Device | None = None) -> int:
    """How often a device that runs was held dead, or suspected."""
    gone = victim.peer if victim is not None else None
    return sum(about(entry.what) != gone for entry in home.history.of(kind, since_s=since_s))


async def measured(devices: int, seed: int, loss: float) -> dict[str, Any]:
    home = long_up(devices, seed, loss)
    await asyncio.sleep(SETTLE_S)
    messages, since_s = home.network.messages, virtual_loop().time()
    await asyncio.sleep(QUIET_S)
    links = [len(device.node._links.all) for device in home.running if device.node is not None]
    found: dict[str, Any] = {
        "devices": devices,
        "loss": loss,
        "messages_per_device_s": round((home.network.messages - messages) / QUIET_S / devices, 1),
        "links_mean": round(sum(links) / devices, 1),
        "links_most": max(links),
        "quiet_false_deaths": wrong(home, PeerDied, since_s),
        "quiet_suspicions": wrong(home, PeerSuspected, since_s),
    }
    followers = [device for device in home.running if not device.view.leads]
    found["ends"] = [
        await end_of(home, followers.pop(home.rng.randrange(len(followers))), how)
        for how in ("crash", "power", "leave")
    ]
    (leader,) = (device for device in home.running if device.view.leads)
    since_s = virtual_loop().time()
    found["ends"].append(await end_of(home, leader, "power"))
    elected = [e.at_s - since_s for e in home.history.of(LeaderElected, since_s=since_s)]
    found["new_leader_first_s"], found["new_leader_last_s"] = (
        round(min(elected), 2),
        round(max(elected), 2),
    )
    found["one_leader"] = len({str(device.view.leader) for device in home.running}) == 1
    for device in home.running:
        await device.crash()
    return found


def failings(found: dict[str, Any]) -> list[str]:
    """Where what was found is not what we promise, in words."""
    words = [f"{end['how']}: not seen by all" for end in found["ends"] if not _by_all(end)]
    words += [f"{end['how']}: others died too" for end in found["ends"] if end["false_deaths"]]
    words += [] if found["one_leader"] else ["not all follow one leader"]
    return words + (["somebody died in peace"] if found["quiet_false_deaths"] else [])


def _by_all(end: dict[str, Any]) -> bool:
    return bool(end["seen_by"] == end["others"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[17, 50, 200, 1000])
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    wrong_in: list[str] = []
    for devices in asked.devices:
        found = run_virtual(measured(devices, asked.seed, asked.loss))
        found["failings"] = failings(found)
        wrong_in += found["failings"]
        print(json.dumps(found), flush=True)
    sys.exit(1 if wrong_in else 0)


if __name__ == "__main__":
    main()
