"""A session: one conversation's generation, as its owner drives it. What is lost is replayed here.

The owner keeps the token ids. When the plan under a session ends (a device was lost, a better plan
came), the session waits for the next one and sends all it has, prompt and generated tokens, through
it; the caches are rebuilt and the stream goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Protocol

from mesh.errors import Busy, GenerationFailed, MeshError, PotluckError, PromptTooLong
from mesh.ids import PeerId, SessionId
from planner.plan import Plan
from runtime.chosen import Chosen
from runtime.history import History
from runtime.prefix import chain
from runtime.sampling import Sampling
from runtime.session_messages import OpenSession
from runtime.steps import Answer, Lease, Steps
from runtime.turns import MAX_STEP_ROWS

# Replays without one new token in between: each waits for a new plan and longer than the one
# before, so these many mean that for about half a minute the home did not settle down.
MAX_FRUITLESS_REPLAYS = 15
MAX_PAUSE_S = 3.0
# A step that a stage could not do is tried again (a peer sent garbage, memory was short), but a
# step that fails so often fails for a reason of its own.
MAX_FAILED_STEPS = 3
# The last resort against a device that is stuck though its heart beats. A prompt's chunk of 512
# tokens takes a Pi about 20 s for a model of 1 B weights, and it may wait behind those of others:
# with 4 conversations and 5 stages, behind 24 chunks.
STEP_TIMEOUT_S = 600.0


class Road(Protocol):
    """What a session needs of the device it lives on."""

    async def plan(self) -> Plan:
        """The plan in force for this model; waits for one. Raises PlanError when none can be."""

    async def open(self, plan: Plan, request: OpenSession) -> int:
        """Makes room on every stage. Raises Busy, StaleEpoch or LinkClosed.

        Returns how many of the tokens that `request.prefix` names every stage has already.
        """

    async def close(self, plan: Plan, session: SessionId, prefix: bytes) -> None:
        """Frees what `open` took, which holds the tokens that `prefix` names; never raises."""

    def paused(self, session: Session, reason: str) -> None:
        """The stream pauses: all tokens so far will be computed again."""

    def resumed(self, session: Session) -> None:
        """The next token has come."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the client asked for."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    end_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds without a new token, counted apart: lost plans, and steps that failed."""

    lost: int = 0
    failed: int = 0

    @property
    def pause_s(self) -> float:
        """Before the next round; the first comes at once."""
        tries = self.lost + self.failed - 1
        return 0.0 if tries < 1 else min(MAX_PAUSE_S, 0.05 * 2.0**tries)

    def after(self, error: PotluckError) -> Rounds:
        """One round more; raises GenerationFailed when there have been too many."""
        if isinstance(error, GenerationFailed):
            if self.failed + 1 >= MAX_FAILED_STEPS:
                raise error
            return replace(self, failed=self.failed + 1)
        if self.lost >= MAX_FRUITLESS_REPLAYS:
            raise GenerationFailed(
                f"{self.lost + 1} plans in a row were lost before the next token; "
                f"the last one: {error}. See `potluck status`."
            ) from error
        return replace(self, lost=self.lost + 1)


@dataclass(slots=True)
class Session:
    """One generation, from prompt to end."""

    me: PeerId
    wanted: Wanted
    road: Road
    steps: Steps
    session_id: SessionId = field(default_factory=SessionId.new)
    generated: list[int] = field(default_factory=list)
    replays: int = 0
    finish_reason: str | None = None
    _paused: bool = False
    _settled: bool = False  # the last step that was sent has been answered

    async def tokens(self) -> AsyncGenerator[Chosen, None]:
        """The tokens as they come; `finish_reason` is set at the end ("stop" or "length").

        Raises PromptTooLong, Busy, PlanError, and GenerationFailed when replaying does not help.
        """
        rounds = Rounds()
        while self.finish_reason is None:
            plan = await self.road.plan()
            # A name of its own for each round: nothing of an earlier one can be mistaken for it.
            self.session_id = SessionId.new()
            try:
                with self.steps.lease(plan, self.session_id) as lease:
                    held = await self._open(plan)
                    async for token in self._under(lease, held):
                        rounds = Rounds()
                        yield token
            except (GenerationFailed, MeshError, Busy) as error:
                if isinstance(error, Busy) and not self.generated:
                    raise  # nothing has been said yet: the client had better come again
                self._pause(str(error))
                rounds = rounds.after(error)
            finally:
                await self.road.close(plan, self.session_id, self._left_behind())
            if self._paused:
                await asyncio.sleep(rounds.pause_s)

    async def _open(self, plan: Plan) -> int:
        """Returns how many tokens need not be sent, since every stage has them."""
        context, prompt = plan.capacity.context, len(self.wanted.prompt)
        if prompt >= context:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens and the context holds {context}; "
                "shorten the prompt, or start the devices with a larger --context"
            )
        if prompt + len(self.generated) >= context:
            raise GenerationFailed(
                f"the conversation has {prompt + len(self.generated)} tokens, "
                f"and the devices that are left hold only {context}; bring one back, or ask again"
            )
        known = self.wanted.prompt + self.generated
        sampling = self.wanted.sampling
        history = History(self.wanted.prompt, self.generated) if sampling.needs_history else None
        request = OpenSession(
            plan.epoch,
            plan.plan_id,
            self.session_id,
            self.me,
            sampling,
            context,
            history=history.pack() if history else b"",
            prefix=chain(known[:-1]),  # the last one is sent at any rate: a choice follows it
        )
        return await self.road.open(plan, request)

    def _left_behind(self) -> bytes:
        """The chain of what the stages hold, where no step is under way; else nothing."""
        if not self._settled:
            return b""
        return chain((self.wanted.prompt + self.generated)[:-1])

    async def _under(self, lease: Lease, held: int) -> AsyncGenerator[Chosen, None]:
        """Prefill with all but the first `held` tokens, then one token a step, until the end."""
        known = self.wanted.prompt + self.generated
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
        starts = range(held, len(known), MAX_STEP_ROWS)
        window = len(lease.plan.stages) + 1
        under_way: deque[Answer] = deque()
        try:
            for first in starts:
                chunk = known[first : first + MAX_STEP_ROWS]
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
        if token is None:
            raise GenerationFailed("the last stage chose no token where one was asked for")
        return token

    async def _answer(self, answer: Answer) -> Chosen | None:
        self._settled = False
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                chosen = await answer
        except TimeoutError:
            raise GenerationFailed(f"a step had no answer within {STEP_TIMEOUT_S:.0f} s") from None
        self._settled = True
        return chosen

    def _pause(self, reason: str) -> None:
        if not self._paused:
            self._paused = True
            self.replays += 1
            self.road.paused(self, reason)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.road.resumed(self)
