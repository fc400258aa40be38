"""A session: one conversation's generation, as its owner drives it.

The owner keeps the token ids, and the source that they speak about where there is one. After a loss
(`runtime.replay`) what the stages of the next plan lack is computed again, from their logs or from
all tokens, prompt and generated; then the stream goes on where it stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mesh.errors import GenerationFailed, PromptTooLong
from planner.plan import MIN_CHUNK_ROWS, Plan, Span, Split
from runtime.chosen import Chosen
from runtime.history import History
from runtime.prefix import chain
from runtime.refill import Held, Refill, Run, refill
from runtime.replay import Replayed
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.steps import Answer, Lease, StepAnswer
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
    _rows_replayed: int = field(default=0, init=False)
    _layers_replayed: tuple[Span, ...] = field(default=(), init=False)

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
    def rows_replayed(self) -> int:
        return self._rows_replayed

    @property
    def rows_known(self) -> int:
        if self.wanted.source is not None:
            return 0  # under each plan its source is read again
        return len(self.wanted.prompt) + len(self.generated) - 1  # the last one is sent at any rate

    @property
    def layers_replayed(self) -> tuple[Span, ...]:
        return self._layers_replayed

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
            prefix=b"" if self._afresh else self._chain(),
            conversation=self.conversation,
            afresh=self._afresh,
        )

    def _left_behind(self) -> bytes:
        return self._chain() if self._settled else b""

    def _chain(self) -> bytes:
        """Of all tokens but the last, which is sent at any rate: a choice follows it."""
        if self.wanted.source is not None:
            return b""  # the same tokens about another source are not the same
        return chain((self.wanted.prompt + self.generated)[:-1])

    async def _under(self, lease: Lease, held: Sequence[Held]) -> AsyncGenerator[Chosen, None]:
        """What some layers lack, the rest through all of them, then one token a step to the end."""
        known = self.wanted.prompt + self.generated
        source = self.wanted.source
        if source is not None:
            first = len(self.wanted.prompt)  # where the first token is chosen
            await self._answer(self.steps.begin_source(lease, first, source, choose=False))
        before = len(known) - 1  # the last one is sent at any rate
        has = refill(lease.plan, held, before)
        again = sum(has.until - run.start for run in has.runs) + before - has.until
        self._rows_replayed = again + (0 if source is None else len(source))
        self._layers_replayed = tuple(run.layers for run in has.runs)
        for run in has.runs:
            await self._compute_again(lease, known, run, has)
        token = await self._prefill(lease, known, has.until)
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
            token = _token(await self._answer(answer))
            position += 1

    async def _compute_again(self, lease: Lease, known: list[int], run: Run, has: Refill) -> None:
        """What the layers of the run lack, until they have as much as the others."""
        rows = chunk_rows(lease.plan, has.until - run.start)

        def steps() -> Iterator[Answer]:
            for first in range(run.start, has.until, rows):
                chunk = known[first : min(first + rows, has.until)]
                yield self.steps.begin_again(lease, first, chunk, run.layers)

        await self._all_of(lease, steps)

    async def _prefill(self, lease: Lease, known: list[int], held: int) -> Chosen:
        """Sends the tokens from `held` on; what follows them."""
        rows = chunk_rows(lease.plan, len(known) - held)

        def steps() -> Iterator[Answer]:
            for first in range(held, len(known), rows):
                chunk = known[first : first + rows]
                last = first + len(chunk) == len(known)
                yield self.steps.begin(lease, first, chunk, choose=last)

        return _token(await self._all_of(lease, steps))

    async def _all_of(self, lease: Lease, steps: Callable[[], Iterator[Answer]]) -> StepAnswer:
        """The answer to the last of these steps, a few at once so that no stage idles."""
        window = len(lease.plan.stages) + 1
        under_way: deque[Answer] = deque()
        found: StepAnswer = None
        try:
            for answer in steps():
                under_way.append(answer)
                if len(under_way) > window:
                    await self._answer(under_way.popleft())
            while under_way:
                found = await self._answer(under_way.popleft())
        finally:
            for answer in under_way:
                answer.cancel()
        return found


def _token(answer: StepAnswer) -> Chosen:
    if not isinstance(answer, Chosen):
        raise GenerationFailed("the last stage chose no token where one was asked for")
    return answer


def chunk_rows(plan: Plan, tokens: int) -> int:
    """How many tokens of a prompt go through a plan at once: where its stages have a device each,
    so many that one stage has a chunk while the one before has the next.
    """
    stages = plan.stages
    if len(stages) == 1 or any(stage.split is not Split.WHOLE for stage in stages):
        return MAX_STEP_ROWS
    count = max(stage.tiles for stage in stages)
    return max(MIN_CHUNK_ROWS, -(-min(tokens, MAX_STEP_ROWS) // count))
