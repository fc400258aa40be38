"""What is timed on an emulated device: a pass through a plan, and its own work in one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apps.bench.held_plans import Held
from apps.bench.physical import NoWire
from mesh.errors import GenerationFailed
from mesh.ids import PeerId, SessionId
from runtime.checkpoints import Model
from runtime.chosen import Chosen
from runtime.sampling import Sampling
from runtime.session import chunk_rows
from runtime.stage import Slice
from runtime.steps import Answer, Lease, StepAnswer, Steps
from runtime.walks.shared import Shared
from runtime.worker import Worker


class TimedPasses:
    """Every text is the same on all devices, for it is made here."""

    def __init__(self, me: PeerId, worker: Worker, steps: Steps) -> None:
        self._me = me
        self._worker = worker
        self._steps = steps
        self._sources = 0

    async def run(
        self, held: Held, session: SessionId, tokens: int, *, choose: bool, decode: int
    ) -> dict[str, Any]:
        """One pass of so many tokens, and then as many greedy ones as are to be decoded."""
        rows = _rows(held.model, tokens)
        with self._steps.lease(held.plan, session, held.model.traffic) as lease:
            started_s = time.perf_counter()
            if held.model.traffic.source is not None:
                self._sources += 1
                answer = await self._steps.begin_source(lease, self._sources, rows, choose=True)
            else:
                answer = await self._prefill(lease, rows[:, 0].tolist(), choose=choose)
            prefill_s = time.perf_counter() - started_s
            said = _numbers(answer)
            decode_s, token_ids = await self._decode(lease, tokens, answer, decode)
        return {"s": prefill_s, "decode_s": decode_s, "said": said, "tokens": token_ids}

    async def work(self, held: Held, session: SessionId, tokens: int) -> float:
        """Seconds for this device's work of a pass, what others would send being there at once."""
        plan, model, computing = held.plan, held.model, held.computing
        index = plan.stage_of(self._me)
        if computing is None or index is None:
            return 0.0
        stage = plan.stages[index]
        me = next(i for i, share in enumerate(stage.shares) if share.device == self._me)
        computing.open(session, Sampling(), plan.capacity.context)
        walk = Shared(stage, NoWire(me, len(stage.shares)))
        is_source = model.traffic.source is not None
        slices = [Slice(session, 0, _rows(model, tokens), choose=False, is_source=is_source)]
        seconds = await self._worker.run(_timed, lambda: computing.turn(slices, walk))
        computing.close(session)
        return seconds

    async def _prefill(self, lease: Lease, ids: list[int], *, choose: bool) -> StepAnswer:
        """In chunks where the plan says so, as `runtime.session` sends them."""
        rows, window = chunk_rows(lease.plan, len(ids)), len(lease.plan.stages) + 1
        under_way: deque[Answer] = deque()
        for first in range(0, len(ids), rows):
            chunk = ids[first : first + rows]
            last = first + len(chunk) == len(ids)
            under_way.append(self._steps.begin(lease, first, chunk, choose=choose and last))
            if len(under_way) > window:
                await under_way.popleft()
        while len(under_way) > 1:
            await under_way.popleft()
        return await under_way.popleft()

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


def _rows(model: Model, tokens: int) -> Tensor:
    """A text of so many tokens: [S, 1]"""
    ids = (7 * torch.arange(tokens, dtype=torch.int32) + 3) % model.spec.vocabulary
    return ids.int().unsqueeze(1)


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _numbers(answer: StepAnswer) -> list[float]:
    """An answer as numbers that can be held against those of another device."""
    if isinstance(answer, Tensor):
        return [float(number) for number in answer]
    if isinstance(answer, Chosen):
        return [logprob for _, logprob in sorted(answer.top)]
    return []
