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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from apps.bench.answering import answer_all, say
from apps.torch_start import import_torch

import_torch()

import torch  # noqa: E402 - in less time, now
from torch import Tensor  # noqa: E402

from apps.bench.physical import NoWire  # noqa: E402
from apps.bench.physical import idle as idled  # noqa: E402
from mesh.codec import from_plain  # noqa: E402
from mesh.errors import ConfigError, GenerationFailed  # noqa: E402
from mesh.identity import Identity  # noqa: E402
from mesh.ids import Address, Epoch, PeerId, PlanId, SessionId  # noqa: E402
from mesh.net.dialer import Dialer  # noqa: E402
from mesh.net.server import WebsocketServer  # noqa: E402
from mesh.net.tensor_links import TensorLinks  # noqa: E402
from mesh.tensor_frame import DType, FrameHeader, Kind, TensorFrame  # noqa: E402
from mesh.trust import MeshSecret, MeshTrust  # noqa: E402
from planner.plan import Plan, Stage  # noqa: E402
from runtime.checkpoints import Model, open_model  # noqa: E402
from runtime.chosen import Chosen  # noqa: E402
from runtime.compute.precision import Precision  # noqa: E402
from runtime.cut import Cut, cut_of  # noqa: E402
from runtime.outbox import Outbox  # noqa: E402
from runtime.pipeline import Pipeline  # noqa: E402
from runtime.post import Computing, Post  # noqa: E402
from runtime.sampling import Sampling  # noqa: E402
from runtime.session_messages import OpenSession, StepFailed  # noqa: E402
from runtime.stage import Slice  # noqa: E402
from runtime.stages import stage_of  # noqa: E402
from runtime.steps import Lease, StepAnswer, Steps  # noqa: E402
from runtime.walks.shared import Shared  # noqa: E402
from runtime.worker import Worker  # noqa: E402

CONNECT_S: Final = 30.0
POLL_S: Final = 0.01
LOGPROBS: Final = 20  # told of a decoder's answer, to hold it against another's


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
        self._pipeline = Pipeline(self._worker, self._outbox, self._report)
        self._models: dict[tuple[str, str], Model] = {}
        self._parts: dict[object, Any] = {}  # layers and heads, by model, number and cut
        self._plans: dict[PlanId, tuple[Plan, Model]] = {}
        self._stages: dict[PlanId, tuple[Stage, Computing]] = {}  # this device's, by plan
        self._sources = 0

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
            case "load":
                return await self._load(**fields)
            case "open":
                return self._open(
                    PlanId(fields["plan"]), SessionId(fields["session"]), PeerId(fields["owner"])
                )
            case "unload":
                return self._unload(PlanId(fields["plan"]))
            case "close":
                return self._pipeline.close(SessionId(fields["session"]), PeerId(fields["owner"]))
            case "pass":
                return await self._pass(**fields)
            case "work":
                return await self._work(
                    PlanId(fields["plan"]), SessionId(fields["session"]), fields["tokens"]
                )
            case "usage":
                return self._usage()
            case "gemm":
                return await self._worker.run(_gemm_gflops, fields["size"], fields["seconds"])
            case "flood":
                return await self._flood(PeerId(fields["peer"]), fields["bytes"], fields["count"])
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

    async def _load(self, plan: Any, path: str, precision: str, idle: bool = False) -> float:
        """Puts a plan in force here; the seconds that it took. Where it is to be `idle`, nothing
        is computed in it.
        """
        started_s = time.perf_counter()
        await self._install(from_plain(Plan, plan), (path, precision), is_idle=idle)
        return time.perf_counter() - started_s

    async def _install(self, plan: Plan, key: tuple[str, str], *, is_idle: bool) -> None:
        path, precision = key
        if key not in self._models:
            self._models[key] = open_model(Path(path), Precision(precision))
        model = self._models[key]
        self._plans[plan.plan_id] = (plan, model)
        for index, stage in enumerate(plan.stages):
            for share in stage.shares:
                if share.device == self.me:
                    span = stage.layers
                    cut = cut_of(plan, self.me).of_layers
                    layers = {i: await self._layer(key, i, cut) for i in range(*_ends(span))}
                    ends = stage is plan.stages[-1] and stage.lead == self.me
                    head = await self._head(key) if ends else None
                    computing = stage_of(model, span, idled(layers) if is_idle else layers, head)
                    self._pipeline.install(Post(plan, index, computing, model.traffic))
                    self._stages[plan.plan_id] = (stage, computing)

    async def _layer(self, model: tuple[str, str], index: int, cut: Cut) -> Any:
        key = (model, index, cut)
        if key not in self._parts:
            load = self._models[model].load_layer
            self._parts[key] = await self._worker.run(load, index, cut=cut)
        return self._parts[key]

    async def _head(self, model: tuple[str, str]) -> Any:
        if model not in self._parts:
            self._parts[model] = await self._worker.run(self._models[model].load_head)
        return self._parts[model]

    def _unload(self, plan_id: PlanId) -> None:
        """Ends a plan; with the last one of a model, its weights go."""
        if plan_id in self._plans:
            self._pipeline.end(plan_id)
            self._stages.pop(plan_id, None)
            _, model = self._plans.pop(plan_id)
            if not any(one is model for _, one in self._plans.values()):
                self._parts.clear()

    def _open(self, plan_id: PlanId, session: SessionId, owner: PeerId) -> None:
        plan, model = self._plans[plan_id]
        if plan.layers_of(self.me) is None:
            return
        sampling = Sampling(logprobs=LOGPROBS if model.traffic.source is None else None)
        context = plan.capacity.context
        self._pipeline.open(OpenSession(plan.epoch, plan_id, session, owner, sampling, context))

    # --- what is measured -------------------------------------------------------------------------

    async def _pass(
        self, plan: str, session: str, tokens: int, choose: bool, decode: int = 0
    ) -> dict[str, Any]:
        """One pass of so many tokens, and then as many greedy ones as are to be decoded."""
        known, model = self._plans[PlanId(plan)]
        rows = _rows(model, tokens)
        with self._steps.lease(known, SessionId(session), model.traffic) as lease:
            started_s = time.perf_counter()
            if model.traffic.source is not None:
                self._sources += 1
                answer = await self._steps.begin_source(lease, self._sources, rows, choose=True)
            else:
                ids = rows[:, 0].tolist()
                answer = await self._steps.begin(lease, 0, ids, choose=choose)
            prefill_s = time.perf_counter() - started_s
            said = _numbers(answer)
            decode_s, token_ids = await self._decode(lease, tokens, answer, decode)
        return {"s": prefill_s, "decode_s": decode_s, "said": said, "tokens": token_ids}

    async def _work(self, plan_id: PlanId, session: SessionId, tokens: int) -> float:
        """Seconds for this device's work of a pass, what others would send being there at once."""
        plan, model = self._plans[plan_id]
        stage, computing = self._stages[plan_id]
        me = next(i for i, share in enumerate(stage.shares) if share.device == self.me)
        computing.open(session, Sampling(), plan.capacity.context)
        walk = Shared(stage, NoWire(me, len(stage.shares)))
        is_source = model.traffic.source is not None
        slices = [Slice(session, 0, _rows(model, tokens), choose=False, is_source=is_source)]
        seconds = await self._worker.run(_timed, lambda: computing.turn(slices, walk))
        computing.close(session)
        return seconds

    async def _decode(
        self, lease: Lease, position: int, answer: StepAnswer, count: int
    ) -> tuple[float, list[int]]:
        started_s = time.perf_counter()
        tokens: list[int] = []
        for _ in range(count):
            if not isinstance(answer, Chosen):
                raise GenerationFailed("the last stage chose no token where one was asked for")
            tokens.append(answer.token)
            answer = await self._steps.begin(lease, position, [answer.token], choose=True)
            position += 1
        return time.perf_counter() - started_s, tokens

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

    async def _flood(self, peer: PeerId, size_bytes: int, count: int) -> float:
        """Seconds for so many frames of so many bytes, that mean nothing, through one link."""
        header = FrameHeader(
            epoch=Epoch(0, self.me),
            plan=PlanId("0" * 32),
            session=SessionId("0" * 32),
            kind=Kind.PROBE,
            dtype=DType.UINT8,
            choose=False,
            position=0,
            rows=1,
            row=0,
            tile_rows=1,
            width=size_bytes,
        )
        payload = memoryview(bytes(size_bytes))
        started_s = time.perf_counter()
        for _ in range(count):
            await self.links.send(peer, header, payload)
        return time.perf_counter() - started_s

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


def _rows(model: Model, tokens: int) -> Tensor:
    """A text of so many tokens, the same on all devices: [S, 1]"""
    ids = (7 * torch.arange(tokens, dtype=torch.int32) + 3) % model.spec.vocabulary
    return ids.int().unsqueeze(1)


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _ends(span: Any) -> tuple[int, int]:
    return span.first, span.last


def _numbers(answer: StepAnswer) -> list[float]:
    """An answer as numbers that can be held against those of another device."""
    if isinstance(answer, Tensor):
        return [float(number) for number in answer]
    if isinstance(answer, Chosen):
        return [logprob for _, logprob in sorted(answer.top)]
    return []


def _gemm_gflops(size: int, seconds: float) -> float:
    """What one thread computes in so many seconds, as products of square fp32 matrices."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    torch.mm(left, right, out=out)
    count, started_s = 0, time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        torch.mm(left, right, out=out)
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - started_s) / 1e9


def main() -> None:
    asyncio.run(_main())


async def _main() -> None:
    start = json.loads(sys.stdin.readline())  # nothing else comes before it is answered
    os.sched_setaffinity(0, start["cores"])
    await BenchDevice(start["secret"], start["host"]).run()


if __name__ == "__main__":
    main()
