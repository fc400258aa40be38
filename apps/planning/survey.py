"""The survey: the leader asks every device for what it measured, and gets a cluster.

The devices keep their own measurements, so a new leader has them all after one round trip.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from apps.planning.messages import PROFILE_DEVICE, ProfileReply, ProfileRequest, Wish
from mesh.codec import from_plain, to_plain
from mesh.errors import LinkError, RequestFailed
from mesh.ids import PeerId
from mesh.membership import Member
from mesh.node import Node
from planner.profile import Cluster, DeviceProfile

KNOWN_TIMEOUT_S = 2.0  # for what a device has at hand
MEASURE_TIMEOUT_S = 120.0  # for a large model's layers and slow links on a small board, once


@dataclass(frozen=True, slots=True)
class Findings:
    """The devices that can take part with their links, and why the others cannot."""

    cluster: Cluster
    absent: dict[PeerId, str]
    unmeasured: frozenset[PeerId]  # left out only because nobody has measured them yet


async def survey(node: Node, wish: Wish, *, measure: bool) -> Findings:
    """What is known of every member that is here. One that vanishes meanwhile is left out.

    With `measure`, what is not known is measured, one device after the other, since several may
    share a machine or a link. Without, the answer is there at once: for when a session waits.
    """
    members = sorted(node.view.alive, key=lambda member: member.peer)
    if measure:
        replies = [await _ask(node, member, members, wish, measure=True) for member in members]
    else:
        replies = await asyncio.gather(
            *(_ask(node, member, members, wish, measure=False) for member in members)
        )
    devices: list[DeviceProfile] = []
    absent: dict[PeerId, str] = {}
    for member, reply in zip(members, replies, strict=True):
        if reply.profile is None:
            absent[member.peer] = reply.absent
        else:
            devices.append(reply.profile)
    links = tuple(link for reply in replies for link in reply.links)
    names = tuple((member.peer, member.name) for member in node.view.members)
    unmeasured = frozenset(
        member.peer for member, reply in zip(members, replies, strict=True) if reply.unmeasured
    )
    return Findings(Cluster(tuple(devices), links, names), absent, unmeasured)


async def _ask(
    node: Node, member: Member, members: list[Member], wish: Wish, *, measure: bool
) -> ProfileReply:
    others = tuple(other.peer for other in members if other.peer != member.peer)
    request = ProfileRequest(wish, others, measure)
    timeout_s = MEASURE_TIMEOUT_S if measure else KNOWN_TIMEOUT_S
    try:
        body = await node.request(member.peer, PROFILE_DEVICE, to_plain(request), timeout_s)
    except (LinkError, RequestFailed) as error:
        return ProfileReply(None, str(error), (), unmeasured=True)  # it may answer next time
    reply: ProfileReply = from_plain(ProfileReply, body)
    return reply
