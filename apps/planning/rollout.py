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
    CommitReply,
    InForce,
    Outcome,
    Prepare,
    PrepareReply,
    Report,
    Room,
    Wish,
)
from mesh.codec import from_plain, to_plain
from mesh.errors import PlanError, ProtocolError, RequestFailed
from mesh.ids import Epoch, PeerId, PlanId
from mesh.node import Node
from planner.plan import Plan
from planner.words import list_text
from runtime.cut import cut_of

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


class StillInUse(RequestFailed):
    """A model that was to make room has a conversation again."""


class DeviceLacks(DeviceRefused):
    """A device lacks weights of its share, and nobody gives them to it now."""


class _Nowhere(DeviceLacks):
    """No device has these weights any more: leaving one of them out would not help."""


async def bring_shares(node: Node, plan: Plan, wish: Wish, before: Plan | None = None) -> None:
    """Before the plan's epoch begins: every device gets on its disk what its share needs, from the
    others where it lacks it, for as long as that takes; the plan in force runs on meanwhile.

    Raises DeviceUnable or DeviceLacks for a device that cannot, LinkError for one that is gone,
    PlanError for weights that nobody has any more; those of the plan `before` had them.
    """
    bringing = [
        asyncio.ensure_future(_bring_share(node, device, plan, wish)) for device in plan.devices
    ]
    try:
        await asyncio.gather(*bringing)
    except _Nowhere as error:
        view = node.view
        gone = [one for one in (before.devices if before else ()) if not view.is_here(one)]
        names = list_text([m.name if (m := view.find(one)) else one.short for one in gone])
        had = f": {names} had them" if gone else ""
        raise PlanError(
            f"{error.reason}{had}. Bring back a device that has them, or the model itself with "
            f"`potluck pull {wish.model.name}`"
        ) from None
    finally:
        for task in bringing:
            task.cancel()


async def _bring_share(node: Node, device: PeerId, plan: Plan, wish: Wish) -> None:
    layers = plan.layers_of(device)
    assert layers is not None, "a device of the plan has a share"
    body = to_plain(BringRequest(wish.model, layers, cut_of(plan, device)))
    clock = asyncio.get_running_loop().time
    moved_s, done_bytes = clock(), -1
    while True:
        answer = await node.request(device, BRING_SHARE, body, BRING_TIMEOUT_S)
        reply: BringReply = from_plain(BringReply, answer)
        if reply.is_nowhere:
            raise _Nowhere(device, reply.reason)
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


async def prepare(
    node: Node, plan: Plan, wish: Wish, stay: Iterable[Plan], leave: Iterable[PlanId]
) -> None:
    """The first phase. Raises DeviceRefused, StillInUse, RequestFailed or LinkError; then the
    devices may have ended what was to leave, and the next plan needs a higher epoch.
    """
    rooms = tuple(Room(other.plan_id, other.capacity) for other in stay)
    request = Prepare(plan, wish, rooms, tuple(leave))
    body = to_plain(request)
    bodies = await ask_all(node, plan.devices, PREPARE_PLAN, body, PREPARE_TIMEOUT_S)
    for device, answer in zip(plan.devices, bodies, strict=True):
        reply: PrepareReply = from_plain(PrepareReply, answer)
        match reply.outcome:
            case Outcome.OK:
                pass
            case Outcome.IMPOSSIBLE:
                raise DeviceUnable(device, reply.reason)
            case Outcome.BUSY:
                raise StillInUse(f"{device.short}: {reply.reason}")
            case _:
                raise DeviceRefused(device, reply.reason)


async def commit(
    node: Node, devices: Iterable[PeerId], epoch: Epoch, in_force: tuple[InForce, ...]
) -> frozenset[PlanId]:
    """The second phase: all devices put these plans in force, and no others. Returns the plans
    that some device has a share in and does not hold ready.

    Raises RequestFailed or LinkError; then not every one has done so.
    """
    body = to_plain(Commit(epoch, in_force))
    lacks: set[PlanId] = set()
    for answer in await ask_all(node, devices, COMMIT_PLAN, body, COMMIT_TIMEOUT_S):
        reply: CommitReply = from_plain(CommitReply, answer)
        lacks.update(reply.lacks)
    return frozenset(lacks)


async def reports(node: Node, devices: Iterable[PeerId]) -> list[Report]:
    """What the devices that answer know of plans."""
    found = []
    for body in await hear_all(node, devices, REPORT_PLAN, None, REPORT_TIMEOUT_S):
        try:
            found.append(from_plain(Report, body))
        except ProtocolError:
            continue  # of another version of this software; its plans are no use to us
    return found
