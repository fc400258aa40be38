"""What a simulated device says of its speed; measuring would tell of the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass

from apps.planning.messages import ProfileReply, ProfileRequest
from mesh.ids import PeerId
from mesh.node import Node
from planner.profile import Curve, DeviceProfile, LinkProfile

STEP_TOKENS = 512
ROUND_TRIP_S = 0.002
BYTES_PER_S = 12.5e6


@dataclass(slots=True)
class Figures:
    """Of one device. What nobody asked it to measure yet it does not know, as a real one."""

    node: Node
    name: str
    layer_s: float  # for one token
    memory_bytes: int
    is_measured: bool = False

    async def answer(self, request: ProfileRequest) -> ProfileReply:
        """Links too are known only to those who are here, as seen from this device."""
        self.is_measured = self.is_measured or request.measure
        if not self.is_measured:
            return ProfileReply(None, "is not measured yet", (), unmeasured=True)
        me = self.node.view.me
        points = ((1, self.layer_s), (STEP_TOKENS, STEP_TOKENS / 8 * self.layer_s))
        # Neither layers nor the head are shared: to wait for others, a turn needs a thread.
        head_s = ROUND_TRIP_S / 100
        profile = DeviceProfile(
            me, self.name, self.memory_bytes, Curve(points), head_s, scratch_bytes=0
        )
        here = [peer for peer in request.peers if self.node.view.is_here(peer)]
        links = tuple(self._link(me, peer) for peer in here)
        return ProfileReply(profile, "", links, unmeasured=len(links) < len(request.peers))

    @staticmethod
    def _link(me: PeerId, peer: PeerId) -> LinkProfile:
        return LinkProfile(me, peer, ROUND_TRIP_S, BYTES_PER_S)
