"""The road: what a session needs of the mesh, from a plan in force to a place on every stage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from apps.planning.installer import Installer
from apps.planning.messages import WANT_PLAN, OpenReply, Outcome, WantReply, Wish
from apps.timeline import Timeline
from mesh.codec import from_plain, to_plain
from mesh.errors import Busy, LinkError, PlanError, RequestFailed, StaleEpoch
from mesh.ids import PeerId
from mesh.node import Node
from planner.plan import Plan
from runtime.moving import FETCH_S
from runtime.refill import Held, in_common
from runtime.replay import Replayed
from runtime.session_messages import (
    CLOSE_SESSION,
    FETCH_CACHES,
    OPEN_SESSION,
    CloseSession,
    FetchCaches,
    OpenSession,
)

# A plan may take as long as a large model needs over a slow link. Devices that vanish meanwhile, or
# get nothing more, end the request at once, so this only bounds a home that never settles.
PLAN_TIMEOUT_S = 4 * 3600.0
LEADER_TIMEOUT_S = 10.0  # an election takes under two seconds once a death is seen
OPEN_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = FETCH_S + 2.0  # a stage answers after that with what it has got
BUSY_WAIT_S = 30.0  # how long a conversation queues for a place before the client is told
ASK_AGAIN_S = 0.2  # between two questions to a mesh that is changing, or full


class MeshRoad:
    """Implements `runtime.replay.Road` for one model."""

    def __init__(self, node: Node, installer: Installer, timeline: Timeline, wish: Wish) -> None:
        self._node = node
        self._installer = installer
        self._timeline = timeline
        self._wish = wish
        self._paused_s = 0.0

    async def plan(self) -> Plan:
        """The plan in force for the model. Raises PlanError in the leader's words, or Busy."""
        reason = "the mesh has no leader"
        try:
            async with asyncio.timeout(PLAN_TIMEOUT_S):
                while True:
                    reply = await self._want()
                    reason = reply.reason
                    if reply.plan is not None and reply.wish is not None:
                        try:
                            return await self._usable(reply.plan, reply.wish)
                        except StaleEpoch as error:
                            reason = str(error)
                    if reply.outcome is Outcome.IMPOSSIBLE:
                        raise PlanError(reason)
                    if reply.outcome is Outcome.BUSY:
                        raise Busy(reason)
                    await asyncio.sleep(ASK_AGAIN_S)
        except TimeoutError:
            raise PlanError(f"no plan within {PLAN_TIMEOUT_S:.0f} s: {reason}") from None

    async def open(self, plan: Plan, request: OpenSession) -> Sequence[Held]:
        """Takes a place on every device with layers, waiting a while for one to become free.

        Returns what each stage has of the conversation.
        """
        deadline_s = asyncio.get_running_loop().time() + BUSY_WAIT_S
        while True:
            refusal, held = await self._open_all(plan, request)
            if refusal is None:
                return held
            if refusal.outcome is not Outcome.BUSY:
                raise StaleEpoch(refusal.reason)
            if asyncio.get_running_loop().time() > deadline_s:
                raise Busy(refusal.reason)
            await asyncio.sleep(ASK_AGAIN_S)

    async def _open_all(
        self, plan: Plan, request: OpenSession
    ) -> tuple[OpenReply | None, list[Held]]:
        """The first refusal, and then every place taken so far is given back; or what each has."""
        held: dict[PeerId, Held] = {}
        for device in holders(plan):
            reply = await self._open_on(device, request)
            if reply.outcome is not Outcome.OK:
                await self.close(plan, CloseSession(request.session, paused=not request.afresh))
                return reply, []
            held[device] = reply.held
        return None, [
            in_common([held[share.device] for share in stage.shares]) for stage in plan.stages
        ]

    async def fetch(self, plan: Plan, stage: int, request: FetchCaches) -> Held | None:
        """Whoever vanishes meanwhile has given nothing."""
        if not self._node.view.is_here(request.giver):
            return None
        holder, body = plan.stages[stage].lead, to_plain(request)
        try:
            answer = await self._node.request(holder, FETCH_CACHES, body, FETCH_TIMEOUT_S)
        except (LinkError, RequestFailed):
            return None
        held: Held = from_plain(Held, answer)
        return held

    async def close(self, plan: Plan, request: CloseSession) -> None:
        body = to_plain(request)
        for device in holders(plan):
            with suppress(LinkError):  # a device that is gone has closed everything
                await self._node.notify(device, CLOSE_SESSION, body)

    def paused(self, work: Replayed[Any], reason: str) -> None:
        self._paused_s = asyncio.get_running_loop().time()
        self._timeline.note(
            "paused", f"conversation {work.session_id[:8]} pauses: {reason}", reason=reason
        )

    def resumed(self, work: Replayed[Any]) -> None:
        paused_ms = (asyncio.get_running_loop().time() - self._paused_s) * 1e3
        tokens = work.rows_replayed
        layers = " and ".join(str(span) for span in work.layers_replayed)
        self._timeline.note(
            "resumed",
            f"conversation {work.session_id[:8]} goes on after {paused_ms:.0f} ms, "
            f"{tokens} tokens replayed" + (f" by layers {layers}" if layers else ""),
            paused_ms=paused_ms,
            replayed_tokens=tokens,
        )

    async def _usable(self, plan: Plan, wish: Wish) -> Plan:
        """A plan in force here, on devices that are here; else raises StaleEpoch."""
        await self._installer.wait_in_force(plan, wish)
        view = self._node.view
        for device in plan.devices:
            if not view.is_here(device):  # we saw it go; the leader will in a moment
                raise StaleEpoch(f"{device.short} is gone")
        return plan

    async def _want(self) -> WantReply:
        try:
            view = await self._node.wait_for(
                lambda view: view.leader is not None, timeout_s=LEADER_TIMEOUT_S
            )
            assert view.leader is not None
            body = await self._node.request(
                view.leader, WANT_PLAN, to_plain(self._wish), PLAN_TIMEOUT_S
            )
        except TimeoutError:
            return WantReply(Outcome.RETRY, "the mesh has no leader")
        except (LinkError, RequestFailed) as error:
            return WantReply(Outcome.RETRY, str(error))
        reply: WantReply = from_plain(WantReply, body)
        return reply

    async def _open_on(self, device: PeerId, request: OpenSession) -> OpenReply:
        body = await self._node.request(device, OPEN_SESSION, to_plain(request), OPEN_TIMEOUT_S)
        reply: OpenReply = from_plain(OpenReply, body)
        return reply


def holders(plan: Plan) -> list[PeerId]:
    """The devices that keep something of a conversation, the lead of each stage before the others,
    so that of two owners one gets all its places.
    """
    return [share.device for stage in plan.stages for share in stage.shares]
