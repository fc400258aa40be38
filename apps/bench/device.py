"""An emulated device: the parts of a real one, with questions in place of the mesh's agreement.

Links, pipeline, worker and stages are those of the daemon. What is not here is everything that
finds out who is there and what the plan is: `apps.bench.home` says so. Several plans may be in
force at once; they share the weights that they have in common.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, Final

from apps.bench.answering import answer_all, say
from apps.torch_start import import_torch

import_torch()

from apps.bench.held_plans import HeldPlans  # noqa: E402 - with torch, in less time now
from apps.bench.own_profile import OwnProfile  # noqa: E402
from apps.bench.timed_passes import TimedPasses  # noqa: E402
from mesh.codec import from_plain, to_plain  # noqa: E402
from mesh.errors import ConfigError  # noqa: E402
from mesh.identity import Identity  # noqa: E402
from mesh.ids import Address, PeerId, PlanId, SessionId  # noqa: E402
from mesh.limits import MIB  # noqa: E402
from mesh.net.dialer import Dialer  # noqa: E402
from mesh.net.server import WebsocketServer  # noqa: E402
from mesh.net.tensor_links import TensorLinks  # noqa: E402
from mesh.tensor_frame import FrameHeader, TensorFrame  # noqa: E402
from mesh.trust import MeshSecret, MeshTrust  # noqa: E402
from planner.plan import Plan  # noqa: E402
from runtime.outbox import Outbox  # noqa: E402
from runtime.pipeline import Pipeline  # noqa: E402
from runtime.session_messages import StepFailed  # noqa: E402
from runtime.steps import Steps  # noqa: E402
from runtime.worker import Worker  # noqa: E402

CONNECT_S: Final = 30.0
POLL_S: Final = 0.01
LOG_BYTES: Final = 64 * MIB  # for what stages give each other, as in a device that serves


class BenchDevice:
    """One device of the emulated home."""

    def __init__(self, secret: str, host: str) -> None:
        """Must be made inside a running event loop."""
        self._trust = MeshTrust(Identity.generate(), MeshSecret.from_join_code(secret))
        self.me: PeerId = self._trust.peer
        self._peers: set[PeerId] = set()
        self.server = WebsocketServer(self._trust, (host,), 0)
        self.links = TensorLinks(
            self.server,
            Dialer(self._trust),
            on_frame=self._on_frame,
            admit=lambda peer: peer in self._peers,
        )
        self._worker = Worker(1)
        self._outbox = Outbox(self.me, self.links, self._on_frame, self._on_lost)
        self._steps = Steps(self._outbox)
        self._pipeline = Pipeline(self._worker, self._outbox, self._report, LOG_BYTES)
        self._plans = HeldPlans(self.me, self._worker, self._pipeline)
        self._passes = TimedPasses(self.me, self._worker, self._steps)
        self._profile = OwnProfile(self.me, self._worker, self.links)

    async def run(self) -> None:
        """Takes part until there is nobody who could ask."""
        async with self.links, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outbox.run())
            tasks.create_task(self._pipeline.run())
            address = await self.server.start()
            say("answer", {"peer": self.me, "address": str(address)})
            await answer_all(self.answer)
            # Nobody asks any more. A worker that waits for another device must not keep us.
            os._exit(0)

    async def answer(self, do: str, fields: dict[str, Any]) -> Any:
        """One question. Raises ConfigError for one that is none."""
        match do:
            case "connect":
                return await self._connect(fields["peers"])
            case "profile":
                return await self._told_profile(**fields)
            case "load":
                return await self._load(**fields)
            case "open":
                return self._plans.open(
                    PlanId(fields["plan"]),
                    SessionId(fields["session"]),
                    PeerId(fields["owner"]),
                    told=fields["told"],
                )
            case "unload":
                return self._plans.unload(PlanId(fields["plan"]))
            case "close":
                return self._pipeline.close(SessionId(fields["session"]), PeerId(fields["owner"]))
            case "pass":
                return await self._pass(**fields)
            case "work":
                held = self._plans[PlanId(fields["plan"])]
                session = SessionId(fields["session"])
                return await self._passes.work(held, session, fields["tokens"])
            case "usage":
                return self._usage()
        raise ConfigError(f"no such question: {do!r}")

    # --- what happens before anything is measured -------------------------------------------------

    async def _connect(self, peers: dict[str, str]) -> None:
        """Links both ways with each of them. Raises ConfigError where one does not come up."""
        self._peers = {PeerId(peer) for peer in peers}
        for peer, address in peers.items():
            await self.links.connect(PeerId(peer), Address.parse(address))
        deadline_s = time.monotonic() + CONNECT_S
        for peer in self._peers:
            while not (self.links.stats(peer).sending and self.links.stats(peer).receiving):
                if time.monotonic() > deadline_s:
                    raise ConfigError(f"no link with {peer.short} within {CONNECT_S:g} s")
                await asyncio.sleep(POLL_S)

    async def _told_profile(
        self, name: str, path: str, precision: str, memory_bytes: int
    ) -> dict[str, Any]:
        model, peers = self._plans.model((path, precision)), sorted(self._peers)
        profile, links = await self._profile.told(name, model, memory_bytes, peers)
        return {"profile": to_plain(profile), "links": [to_plain(link) for link in links]}

    async def _load(self, plan: Any, path: str, precision: str, idle: bool = False) -> None:
        """Puts a plan in force here. Where it is to be `idle`, nothing is computed in it."""
        await self._plans.load(from_plain(Plan, plan), (path, precision), is_idle=idle)

    # --- what is measured -------------------------------------------------------------------------

    async def _pass(
        self, plan: str, session: str, tokens: int, choose: bool, decode: int
    ) -> dict[str, Any]:
        return await self._passes.run(
            self._plans[PlanId(plan)], SessionId(session), tokens, choose=choose, decode=decode
        )

    def _usage(self) -> dict[str, Any]:
        """Processor time of this process so far, and what went over its links."""
        stats = [self.links.stats(peer) for peer in self._peers]
        return {
            "cpu_s": time.process_time(),
            "sent_bytes": sum(one.sent_bytes for one in stats),
            "sent_frames": sum(one.sent_frames for one in stats),
            "received_bytes": sum(one.received_bytes for one in stats),
            "refused": dict(self._pipeline.refused),
        }

    # --- frames -----------------------------------------------------------------------------------

    def _on_frame(self, peer: PeerId, frame: TensorFrame) -> None:
        if frame.header.kind.to_owner:
            self._steps.on_frame(peer, frame)
        else:
            self._pipeline.on_frame(peer, frame)

    def _on_lost(self, header: FrameHeader, reason: str) -> None:
        say("failed", f"a frame was lost: {reason}")

    def _report(self, owner: PeerId, failure: StepFailed) -> None:
        say("failed", failure.reason)


def main() -> None:
    asyncio.run(_main())


async def _main() -> None:
    start = json.loads(sys.stdin.readline())  # nothing else comes before it is answered
    os.sched_setaffinity(0, start["cores"])
    await BenchDevice(start["secret"], start["host"]).run()


if __name__ == "__main__":
    main()
