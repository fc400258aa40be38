"""A device's answers to the leader and to the owners of sessions: every request of the packages
above the mesh ends here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from apps.models.sharing import Sharing
from apps.planning.coordinator import Coordinator
from apps.planning.installer import Installer
from apps.planning.messages import (
    BLAME_DEVICE,
    COMMIT_PLAN,
    LEAVE_PLANS,
    PREPARE_PLAN,
    PREVIEW_PLAN,
    PROFILE_DEVICE,
    REPORT_EFFORTS,
    REPORT_PLAN,
    WANT_PLAN,
    Blame,
    Commit,
    CommitReply,
    EffortsReport,
    OpenReply,
    Outcome,
    Prepare,
    PrepareReply,
    ProfileRequest,
    Wish,
)
from apps.planning.preview import choice_as_dict
from apps.planning.profiles import Measures
from mesh.codec import from_plain, to_plain
from mesh.errors import Busy, PotluckError, StaleEpoch
from mesh.fault_points import reach
from mesh.ids import PeerId
from mesh.node import Node
from runtime.moving import FETCH_S
from runtime.pipeline import Pipeline
from runtime.session_messages import (
    ASK_CACHE,
    CLOSE_SESSION,
    FETCH_CACHES,
    OPEN_SESSION,
    STEP_FAILED,
    AskCache,
    CloseSession,
    FetchCaches,
    OpenSession,
    StepFailed,
)
from runtime.steps import Steps


class MemberRole:
    """Registers a handler per topic on the node."""

    def __init__(
        self,
        *,
        node: Node,
        installer: Installer,
        coordinator: Coordinator,
        profiles: Measures,
        pipeline: Pipeline,
        steps: Steps,
        sharing: Sharing,
        meet: Callable[[Collection[PeerId]], None],
    ) -> None:
        """`meet` makes tensor links with these devices, where there are not links with all."""
        self._node = node
        self._installer = installer
        self._coordinator = coordinator
        self._profiles = profiles
        self._pipeline = pipeline
        self._steps = steps
        self._sharing = sharing
        self._meet = meet
        node.on_request(WANT_PLAN, self._want)
        node.on_request(PREVIEW_PLAN, self._preview)
        node.on_request(LEAVE_PLANS, self._leave)
        node.on_request(REPORT_PLAN, self._report)
        node.on_request(REPORT_EFFORTS, self._efforts)
        node.on_request(PREPARE_PLAN, self._prepare)
        node.on_request(COMMIT_PLAN, self._commit)
        node.on_request(PROFILE_DEVICE, self._profile)
        node.on_request(OPEN_SESSION, self._open_session)
        node.on_request(FETCH_CACHES, self._fetch_caches)
        node.on_request(ASK_CACHE, self._give_cache)
        node.on_notice(CLOSE_SESSION, self._close_session)
        node.on_notice(STEP_FAILED, self._step_failed)
        node.on_notice(BLAME_DEVICE, self._blamed)

    # --- plans ------------------------------------------------------------------------------------

    async def _want(self, peer: PeerId, body: Any) -> Any:
        return to_plain(await self._coordinator.want(from_plain(Wish, body)))

    async def _preview(self, peer: PeerId, body: Any) -> Any:
        wish: Wish = from_plain(Wish, body)
        choice = await self._coordinator.preview(wish)
        names = {member.peer: member.name for member in self._node.view.members}
        # Some layers are simulated for it: not in the loop, where the heart beats.
        return await asyncio.to_thread(choice_as_dict, choice, names, wish.profile)

    async def _leave(self, peer: PeerId, body: Any) -> Any:
        return to_plain(await self._coordinator.leave(peer))

    async def _report(self, peer: PeerId, body: Any) -> Any:
        return to_plain(self._installer.report())

    async def _efforts(self, peer: PeerId, body: Any) -> Any:
        return to_plain(EffortsReport(self._pipeline.meter.measured))

    async def _profile(self, peer: PeerId, body: Any) -> Any:
        return to_plain(await self._profiles.answer(from_plain(ProfileRequest, body)))

    async def _prepare(self, peer: PeerId, body: Any) -> Any:
        request: Prepare = from_plain(Prepare, body)
        try:
            self._check_leader(peer)
            self._meet(request.plan.devices)
            await self._installer.prepare(request, self._node.view.epoch)
        except StaleEpoch as error:
            return to_plain(PrepareReply(Outcome.RETRY, str(error)))
        except Busy as error:
            return to_plain(PrepareReply(Outcome.BUSY, str(error)))
        except (PotluckError, OSError, MemoryError, RuntimeError) as error:
            # A damaged file, a disk that fails, memory that is gone: this device is out.
            return to_plain(PrepareReply(Outcome.IMPOSSIBLE, str(error) or type(error).__name__))
        reach("share.prepared")
        return to_plain(PrepareReply(Outcome.OK, ""))

    async def _commit(self, peer: PeerId, body: Any) -> Any:
        request: Commit = from_plain(Commit, body)
        self._check_leader(peer)
        lacks = await self._installer.commit(request, self._node.view.epoch)
        reach("share.committed")
        for one in request.in_force:
            self._sharing.on_plan(one.wish.model)
        return to_plain(CommitReply(lacks))

    async def _blamed(self, peer: PeerId, body: Any) -> None:
        self._coordinator.on_blame(peer, from_plain(Blame, body))

    def _check_leader(self, peer: PeerId) -> None:
        if peer != self._node.view.leader:
            self._installer.refused["plan of a device that does not lead"] += 1
            raise StaleEpoch(f"{peer.short} does not lead here; plans come from the leader")

    # --- sessions ---------------------------------------------------------------------------------

    async def _open_session(self, peer: PeerId, body: Any) -> Any:
        request: OpenSession = from_plain(OpenSession, body)
        if request.owner != peer:
            raise StaleEpoch(f"{peer.short} opens a session for {request.owner.short}")
        try:
            self._meet((peer,))
            held = self._pipeline.open(request)
        except Busy as error:
            return to_plain(OpenReply(Outcome.BUSY, str(error)))
        except StaleEpoch as error:
            return to_plain(OpenReply(Outcome.RETRY, str(error)))
        return to_plain(OpenReply(Outcome.OK, "", held))

    async def _close_session(self, peer: PeerId, body: Any) -> None:
        request: CloseSession = from_plain(CloseSession, body)
        self._pipeline.close(request.session, peer, request.prefix, paused=request.paused)
        if request.conversation is not None:
            self._pipeline.moving.former.let_go(request.conversation)

    async def _fetch_caches(self, peer: PeerId, body: Any) -> Any:
        request: FetchCaches = from_plain(FetchCaches, body)
        self._meet((request.giver,))
        return to_plain(await self._pipeline.moving.fetch(request, peer, self._ask_cache))

    async def _ask_cache(self, giver: PeerId, asked: AskCache) -> int:
        """Raises LinkError, RequestFailed or ProtocolError."""
        answer = await self._node.request(giver, ASK_CACHE, to_plain(asked), FETCH_S)
        count: int = from_plain(int, answer)
        return count

    async def _give_cache(self, peer: PeerId, body: Any) -> Any:
        self._meet((peer,))
        return await self._pipeline.moving.give(peer, from_plain(AskCache, body))

    async def _step_failed(self, peer: PeerId, body: Any) -> None:
        self._steps.on_step_failed(from_plain(StepFailed, body))
