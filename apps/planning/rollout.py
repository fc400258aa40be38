"""The rollout of a plan, as the leader drives it: all prepare, then all commit, then all know."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from apps.ask import ask_all, hear_all
from apps.models.messages import BRING_SHARE, BringReply, BringRequest
from apps.planning.messages import (
    COMMIT_PLAN,
    PREPARE_PLAN,
    REPORT_PLAN,
    Commit,
    Outcome,
    Prepare,
    PrepareReply,
    Report,
    Wish,
)
from mesh.codec import from_plain, to_plain
from mesh.errors import ProtocolError, RequestFailed
from mesh.ids import PeerId
from mesh.node import Node
from planner.plan import Plan

REPORT_TIMEOUT_S = 2.0  # a report is a look at two variables
BRING_TIMEOUT_S = 10.0  # a device says every two seconds how far it is
BRING_STALL_S = 60.0  # not a byte more in this time: the device is left out for a while
PREPARE_TIMEOUT_S = 600.0  # reading a large share from an SD card; a lost device ends it at once
COMMIT_TIMEOUT_S = 5.0


class DeviceRefused(RequestFailed):
    """A device does not take part now: it follows another leader, or is behind in epoch."""

    def __init__(self, device: PeerId, reason: str) -> None:
        super().__init__(f"{device.short}: {reason}")
        self.device = device
        self.reason = reason


class DeviceUnable(DeviceRefused):
    """A device cannot take its share, and will not be able to when asked again."""


class DeviceLacks(DeviceRefused):
    """A device lacks weights of its share, and nobody gives them to it now."""


async def bring_shares(node: Node, plan: Plan, wish: Wish) -> None:
    """Before the plan's epoch begins: every device gets on its disk what its share needs, from the
    others where it lacks it, for as long as that takes; the plan in force runs on meanwhile.

    Raises DeviceUnable or DeviceLacks for a device that cannot, LinkError for one that is gone.
    """
    bringing = [
        asyncio.ensure_future(_bring_share(node, device, plan, wish)) for device in plan.devices
    ]
    try:
        await asyncio.gather(*bringing)
    finally:
        for task in bringing:
            task.cancel()


async def _bring_share(node: Node, device: PeerId, plan: Plan, wish: Wish) -> None:
    layers = plan.layers_of(device)
    assert layers is not None, "a device of the plan has layers"
    body = to_plain(BringRequest(wish.model, layers))
    clock = asyncio.get_running_loop().time
    moved_s, done_bytes = clock(), -1
    while True:
        answer = await node.request(device, BRING_SHARE, body, BRING_TIMEOUT_S)
        reply: BringReply = from_plain(BringReply, answer)
        match reply.outcome:
            case Outcome.OK:
                return
            case Outcome.IMPOSSIBLE:
                raise DeviceUnable(device, reply.reason)
            case Outcome.WAIT:
                pass
            case _:
                raise DeviceLacks(device, reply.reason)
        if reply.done_bytes != done_bytes:
            moved_s, done_bytes = clock(), reply.done_bytes
        elif clock() - moved_s > BRING_STALL_S:
            raise DeviceLacks(device, f"got no more of {wish.model.name} for {BRING_STALL_S:.0f} s")


async def roll_out(node: Node, plan: Plan, wish: Wish) -> None:
    """Two phases. Raises DeviceRefused, RequestFailed or LinkError; then no device, or not every
    one, has the plan in force, and the next plan needs a higher epoch.
    """
    prepare = to_plain(Prepare(plan, wish))
    bodies = await ask_all(node, plan.devices, PREPARE_PLAN, prepare, PREPARE_TIMEOUT_S)
    for device, body in zip(plan.devices, bodies, strict=True):
        reply: PrepareReply = from_plain(PrepareReply, body)
        if reply.outcome is Outcome.IMPOSSIBLE:
            raise DeviceUnable(device, reply.reason)
        if reply.outcome is not Outcome.OK:
            raise DeviceRefused(device, reply.reason)
    commit = to_plain(Commit(plan, wish))
    await ask_all(node, plan.devices, COMMIT_PLAN, commit, COMMIT_TIMEOUT_S)


async def tell(node: Node, devices: Iterable[PeerId], plan: Plan, wish: Wish) -> None:
    """Devices without a share learn of a plan too, and end what they did under older ones.

    One that does not hear of it asks when it has a session.
    """
    await hear_all(node, devices, COMMIT_PLAN, to_plain(Commit(plan, wish)), COMMIT_TIMEOUT_S)


async def reports(node: Node, devices: Iterable[PeerId]) -> list[Report]:
    """What the devices that answer know of plans."""
    found = []
    for body in await hear_all(node, devices, REPORT_PLAN, None, REPORT_TIMEOUT_S):
        try:
            found.append(from_plain(Report, body))
        except ProtocolError:
            continue  # of another version of this software; its plans are no use to us
    return found
