"""A session: one conversation's generation, as its owner drives it.

The owner keeps the token ids, and the source that they speak about where there is one. After a loss
(`runtime.replay`) it sends all it has, prompt and generated tokens, through the next plan; the
caches are rebuilt and the stream goes on where it stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from torch import Tensor

from mesh.errors import GenerationFailed, PromptTooLong
from planner.plan import MIN_CHUNK_ROWS, Plan, Split
from runtime.chosen import Chosen
from runtime.history import History
from runtime.prefix import chain
from runtime.replay import Replayed
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.steps import Answer, Lease
from runtime.turns import MAX_STEP_ROWS


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the client asked for.

    With a `source`, as `Traffic.source` describes it, a decoder speaks about that, and `prompt` is
    what it is taken to have said already.
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    end_ids: frozenset[int]
    source: Tensor | None = None


@dataclass(slots=True)
class Session(Replayed[Chosen]):
    """One generation, from prompt to end."""

    wanted: Wanted
    generated: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def tokens(self) -> AsyncGenerator[Chosen, None]:
        """The tokens as they come; `finish_reason` is set at the end ("stop" or "length").

        Raises PromptTooLong, Busy, PlanError, and GenerationFailed when replaying does not help.
        """
        return self._run()

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None

    @property
    def has_begun(self) -> bool:
        return bool(self.generated)

    @property
    def rows_to_replay(self) -> int:
        source = 0 if self.wanted.source is None else len(self.wanted.source)
        return source + len(self.wanted.prompt) + len(self.generated)

    def _opening(self, plan: Plan) -> OpenSession:
        context, prompt = plan.capacity.context, len(self.wanted.prompt)
        source = self.wanted.source
        read = 0 if source is None or source.is_floating_point() else len(source)
        if max(read, prompt) >= context:
            raise PromptTooLong(
                f"the prompt has {max(read, prompt)} tokens and the context holds {context}; "
                "shorten the prompt, or start the devices with a larger --context"
            )
        if prompt + len(self.generated) >= context:
            raise GenerationFailed(
                f"the conversation has {prompt + len(self.generated)} tokens, "
                f"and the devices that are left hold only {context}; bring one back, or ask again"
            )
        sampling = self.wanted.sampling
        history = History(self.wanted.prompt, self.generated) if sampling.needs_history else None
        return OpenSession(
            plan.epoch,
            plan.plan_id,
            self.session_id,
            self.me,
            sampling,
            context,
            history=history.pack() if history else b"",
            # Where a step failed, what came from others may be why: this time all is computed.
            prefix=b"" if self._paused else self._chain(),
        )

    def _left_behind(self) -> bytes:
        return self._chain() if self._settled else b""

    def _chain(self) -> bytes:
        """Of all tokens but the last, which is sent at any rate: a choice follows it."""
        if self.wanted.source is not None:
            return b""  # the same tokens about another source are not the same
        return chain((self.wanted.prompt + self.generated)[:-1])

    async def _under(self, lease: Lease, held: int) -> AsyncGenerator[Chosen, None]:
        """Prefill with all but the first `held` tokens, then one token a step, until the end."""
        known = self.wanted.prompt + self.generated
        if self.wanted.source is not None:
            first = len(self.wanted.prompt)  # where the first token is chosen
            await self._answer(
                self.steps.begin_source(lease, first, self.wanted.source, choose=False)
            )
        token = await self._prefill(lease, known, held)
        position = len(known)  # where `token` goes next
        while True:
            self._resume()
            if token.token in self.wanted.end_ids:
                self.finish_reason = "stop"
                return
            self.generated.append(token.token)
            full = position >= lease.plan.capacity.context
            if full or len(self.generated) >= self.wanted.max_new_tokens:
                self.finish_reason = "length"
                yield token
                return
            yield token
            answer = self.steps.begin(lease, position, [token.token], choose=True)
            token = await self._choose(answer)
            position += 1

    async def _prefill(self, lease: Lease, known: list[int], held: int) -> Chosen:
        """Sends the tokens from `held` on, a few chunks at once so that no stage idles."""
        rows = chunk_rows(lease.plan, len(known) - held)
        starts = range(held, len(known), rows)
        window = len(lease.plan.stages) + 1
        under_way: deque[Answer] = deque()
        try:
            for first in starts:
                chunk = known[first : first + rows]
                last = first + len(chunk) == len(known)
                under_way.append(self.steps.begin(lease, first, chunk, choose=last))
                if len(under_way) > window:
                    await self._answer(under_way.popleft())
            while len(under_way) > 1:
                await self._answer(under_way.popleft())
            return await self._choose(under_way.popleft())
        finally:
            for answer in under_way:
                answer.cancel()

    async def _choose(self, answer: Answer) -> Chosen:
        token = await self._answer(answer)
        if not isinstance(token, Chosen):
            raise GenerationFailed("the last stage chose no token where one was asked for")
        return token


def chunk_rows(plan: Plan, tokens: int) -> int:
    """How many tokens of a prompt go through a plan at once: where its stages have a device each,
    so many that one stage has a chunk while the one before has the next.
    """
    stages = plan.stages
    if len(stages) == 1 or any(stage.split is not Split.WHOLE for stage in stages):
        return MAX_STEP_ROWS
    count = max(stage.tiles for stage in stages)
    return max(MIN_CHUNK_ROWS, -(-min(tokens, MAX_STEP_ROWS) // count))
