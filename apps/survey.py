"""The survey: the leader asks every device for its profile and its links, and gets a cluster.

Profiles are kept by the devices that measured them, links by this survey, so that replanning after
a loss costs one round trip.
"""

from __future__ import annotations

from dataclasses import dataclass

from apps.plan_messages import (
    PROFILE_DEVICE,
    PROFILE_LINKS,
    ProfileLinks,
    ProfileLinksReply,
    ProfileReply,
    Wish,
)
from mesh.codec import from_plain, to_plain
from mesh.errors import LinkError, RequestFailed
from mesh.ids import PeerId
from mesh.membership import Member
from mesh.node import Node
from planner.profile import Cluster, DeviceProfile, LinkProfile

PROFILE_TIMEOUT_S = 120.0  # measuring a large model's layer on a slow board, once


@dataclass(frozen=True, slots=True)
class Findings:
    """The devices that can take part with their links, and why the others cannot."""

    cluster: Cluster
    absent: dict[PeerId, str]


class Survey:
    """Remembers the links it measured, by the incarnations at both ends."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._links: dict[tuple[PeerId, int, PeerId, int], LinkProfile] = {}

    async def findings(self, wish: Wish) -> Findings:
        """Profiles of every member that is here. A device that vanishes meanwhile is left out."""
        devices: list[DeviceProfile] = []
        absent: dict[PeerId, str] = {}
        members = sorted(self._node.view.alive, key=lambda member: member.peer)
        # One after the other: devices may share a machine, and a profile taken beside another's
        # would be wrong. Only the first time costs anything; later the devices answer from disk.
        for member in members:
            reply = await self._profile(member, wish)
            if reply.profile is None:
                absent[member.peer] = reply.absent
            else:
                devices.append(reply.profile)
        able = {profile.device for profile in devices}
        links = await self._measure([member for member in members if member.peer in able])
        names = tuple((member.peer, member.name) for member in self._node.view.members)
        return Findings(Cluster(tuple(devices), tuple(links), names), absent)

    async def _profile(self, member: Member, wish: Wish) -> ProfileReply:
        try:
            body = await self._node.request(
                member.peer, PROFILE_DEVICE, to_plain(wish), PROFILE_TIMEOUT_S
            )
            reply: ProfileReply = from_plain(ProfileReply, body)
        except (LinkError, RequestFailed) as error:
            return ProfileReply(None, str(error))
        return reply

    async def _measure(self, members: list[Member]) -> list[LinkProfile]:
        found: list[LinkProfile] = []
        for source in members:
            keys = {
                target.peer: (source.peer, source.incarnation, target.peer, target.incarnation)
                for target in members
                if target.peer != source.peer
            }
            missing = tuple(peer for peer, key in keys.items() if key not in self._links)
            for link in await self._ask(source.peer, missing):
                if link.source == source.peer and link.target in keys:
                    self._links[keys[link.target]] = link
            found += [self._links[key] for key in keys.values() if key in self._links]
        present = {(member.peer, member.incarnation) for member in members}
        self._links = {
            key: link
            for key, link in self._links.items()
            if (key[0], key[1]) in present and (key[2], key[3]) in present
        }
        return found

    async def _ask(self, source: PeerId, targets: tuple[PeerId, ...]) -> tuple[LinkProfile, ...]:
        if not targets:
            return ()
        try:
            body = await self._node.request(
                source, PROFILE_LINKS, to_plain(ProfileLinks(targets)), PROFILE_TIMEOUT_S
            )
        except (LinkError, RequestFailed):
            return ()  # it is going; the planner takes a link nobody measured as unusable
        reply: ProfileLinksReply = from_plain(ProfileLinksReply, body)
        return reply.links
