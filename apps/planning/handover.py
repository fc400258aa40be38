"""The hand-over: what a device does for the others' conversations before it says goodbye."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from apps.planning.installer import Installer
from apps.planning.messages import LEAVE_PLANS, LeaveReply, Outcome
from apps.planning.road import ASK_AGAIN_S
from apps.timeline import Timeline
from mesh.codec import from_plain
from mesh.errors import MeshError
from mesh.node import Node
from runtime.pipeline import Pipeline

# What a person waits at most who typed Ctrl-C. Layers that are on the others' disks take a second
# or two to load; where it takes longer, the conversations replay.
HAND_OVER_S: Final = 5.0


class HandOver:
    """Serves on until the others need this device no more."""

    def __init__(
        self, node: Node, installer: Installer, pipeline: Pipeline, timeline: Timeline
    ) -> None:
        self._node = node
        self._installer = installer
        self._pipeline = pipeline
        self._timeline = timeline

    async def run(self) -> None:
        """Returns when the conversations of others that go through this device go on without it,
        caches and all; after HAND_OVER_S; or at once where there are none, or nobody to go on.
        """
        count, clock = self._pipeline.conversations_besides(self._node.view.me), _clock()
        is_needed = count > 0 or self._installer.has_vocabulary
        if not is_needed or len(self._node.view.alive) < 2:
            return
        self._timeline.note("handing-over", f"handing over {count} conversation(s) to the others")
        why = f"it was not done within {HAND_OVER_S:.0f} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                reply = await self._asked()
                why = reply.reason
                if reply.outcome is Outcome.OK:
                    await self._installer.without_share()
                    await self._pipeline.moving.former.fetched()
                    took_ms = (_clock() - clock) * 1e3
                    words = f"{count} conversation(s) handed over in {took_ms:.0f} ms"
                    self._timeline.note("handed-over", words, hand_over_ms=took_ms)
                    return
        self._timeline.note("not-handed-over", f"{count} conversation(s) have to replay: {why}")

    async def _asked(self) -> LeaveReply:
        """The leader's answer: there are plans without this device, or why not."""
        while True:
            view = await self._node.wait_for(lambda view: view.leader is not None, timeout_s=None)
            assert view.leader is not None
            with suppress(MeshError):  # it is gone: the next one is asked
                body = await self._node.request(view.leader, LEAVE_PLANS, None, HAND_OVER_S)
                reply: LeaveReply = from_plain(LeaveReply, body)
                if reply.outcome is not Outcome.RETRY:
                    return reply
            await asyncio.sleep(ASK_AGAIN_S)


def _clock() -> float:
    return asyncio.get_running_loop().time()
