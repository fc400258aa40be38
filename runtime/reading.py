"""Reading: sources through an encoder, a vector for each, as their owner drives it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mesh.errors import GenerationFailed
from planner.plan import Plan
from runtime.refill import Held
from runtime.replay import Replayed
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.steps import Answer, Lease


@dataclass(slots=True)
class Reading(Replayed[Tensor]):
    """One request's sources, each as `Traffic.source` describes it.

    An encoder remembers nothing, so after a loss only what has no vector yet is sent again.
    """

    sources: Sequence[Tensor]
    vectors: list[Tensor] = field(default_factory=list)

    def all_vectors(self) -> AsyncGenerator[Tensor, None]:
        """A vector [width] for each source, in their order, as they come.

        Raises Busy, PlanError, and GenerationFailed when replaying does not help.
        """
        return self._run()

    @property
    def is_done(self) -> bool:
        return len(self.vectors) == len(self.sources)

    @property
    def has_begun(self) -> bool:
        return bool(self.vectors)

    @property
    def rows_replayed(self) -> int:
        return 0

    def _opening(self, plan: Plan) -> OpenSession:
        return OpenSession(
            plan.epoch,
            plan.plan_id,
            self.session_id,
            self.me,
            Sampling(),
            plan.capacity.context,
            conversation=self.conversation,
        )

    async def _under(self, lease: Lease, held: Sequence[Held]) -> AsyncGenerator[Tensor, None]:
        """A few sources at once, so that no stage idles."""
        window = len(lease.plan.stages) + 1
        under_way: deque[Answer] = deque()
        next_one = len(self.vectors)
        try:
            while not self.is_done:
                while next_one < len(self.sources) and len(under_way) < window:
                    source = self.sources[next_one]
                    under_way.append(self.steps.begin_source(lease, next_one, source, choose=True))
                    next_one += 1
                vector = await self._vector(under_way.popleft())
                self._resume()
                self.vectors.append(vector)
                yield vector
        finally:
            for answer in under_way:
                answer.cancel()

    async def _vector(self, answer: Answer) -> Tensor:
        vector = await self._answer(answer)
        if not isinstance(vector, Tensor):
            raise GenerationFailed("the last stage gave no vector where one was asked for")
        return vector
