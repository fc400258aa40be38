"""Replay: work of this device that goes on through plan after plan until it is done.

When the plan under it ends (a device was lost, a better plan came), it waits for the next one and
has computed again whatever the stages do not know any more (`runtime.refill`); what has been
answered already stays answered.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from mesh.errors import Busy, GenerationFailed, MeshError, PlanReplaced, PotluckError
from mesh.fault_points import reach
from mesh.ids import PeerId, SessionId
from planner.plan import Plan, Span
from runtime.refill import Held, Move, moves
from runtime.session_messages import CloseSession, FetchCaches, OpenSession
from runtime.steps import Answer, Lease, StepAnswer, Steps
from runtime.traffic import Traffic

T = TypeVar("T")

# Replays without anything new in between: each waits for a new plan and longer than the one
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
    """What work needs of the device it lives on."""

    async def plan(self) -> Plan:
        """The plan in force for this model; waits for one. Raises PlanError when none can be."""

    async def open(self, plan: Plan, request: OpenSession) -> Sequence[Held]:
        """Makes room on every stage. Raises Busy, StaleEpoch or LinkClosed.

        Returns what each stage has of the conversation already.
        """

    async def fetch(self, plan: Plan, stage: int, request: FetchCaches) -> Held | None:
        """Lets a stage fetch caches; what it has then. None where nothing came of it."""

    async def close(self, plan: Plan, request: CloseSession) -> None:
        """Frees what `open` took, and what is kept for other devices; never raises."""

    def paused(self, work: Replayed[Any], reason: str) -> None:
        """The work pauses: all that the stages knew of it will be computed again."""

    def resumed(self, work: Replayed[Any]) -> None:
        """The next answer has come."""


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
class Replayed(ABC, Generic[T]):
    """One session on the stages: under each plan it has another name, and goes on."""

    me: PeerId
    road: Road
    steps: Steps
    traffic: Traffic  # of the model
    session_id: SessionId = field(default_factory=SessionId.new, kw_only=True)
    replays: int = field(default=0, kw_only=True)  # after losses, and steps that failed
    moves: int = field(default=0, kw_only=True)  # to better plans, where nothing was lost
    conversation: SessionId = field(default_factory=SessionId.new, init=False)  # in all sessions
    _paused: bool = field(default=False, init=False)
    _settled: bool = field(default=False, init=False)  # the last step sent has been answered
    _afresh: bool = field(default=False, init=False)  # what the stages have may be why one failed
    # Under which all layers had all, as far as it had come, and as what session.
    _former: tuple[Plan, SessionId] | None = field(default=None, init=False)

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether there is nothing left to ask the stages for."""

    @property
    @abstractmethod
    def has_begun(self) -> bool:
        """Whether the client has got something, and would lose it if it had to come again."""

    @property
    @abstractmethod
    def rows_replayed(self) -> int:
        """How many rows were computed again under this plan, by some layers or by all."""

    @property
    def rows_known(self) -> int:
        """How many tokens each layer should have; 0 where their caches stay where they are."""
        return 0

    @property
    def layers_replayed(self) -> tuple[Span, ...]:
        """The only layers that computed anything again under this plan; none: all did, or none."""
        return ()

    @abstractmethod
    def _opening(self, plan: Plan) -> OpenSession:
        """What the stages are told of the session. Raises PromptTooLong or GenerationFailed."""

    @abstractmethod
    def _under(self, lease: Lease, held: Sequence[Held]) -> AsyncGenerator[T, None]:
        """What comes under one plan, of which each stage has something already."""

    def _left_behind(self) -> bytes:
        """The chain of the tokens that the stages hold, if another session can use them."""
        return b""

    async def _run(self) -> AsyncGenerator[T, None]:
        """What comes, under however many plans. Raises PromptTooLong, Busy, PlanError, and
        GenerationFailed when replaying does not help.
        """
        rounds = Rounds()
        while not self.is_done:
            plan = await self.road.plan()
            # A name of its own for each round: nothing of an earlier one can be mistaken for it.
            self.session_id = SessionId.new()
            try:
                with self.steps.lease(plan, self.session_id, self.traffic) as lease:
                    held = await self.road.open(plan, self._opening(plan))
                    if self._paused:
                        reach("session.replaying")
                    held = await self._moved(lease, held)
                    async for answer in self._under(lease, held):
                        rounds = Rounds()
                        yield answer
            except (GenerationFailed, MeshError, Busy) as error:
                if isinstance(error, Busy) and not self.has_begun:
                    raise  # nothing has been said yet: the client had better come again
                self._pause(error)
                rounds = rounds.after(error)
                self._afresh = rounds.failed > 0
            finally:
                await self._close(plan)
            if self._paused:
                await asyncio.sleep(rounds.pause_s)

    async def _moved(self, lease: Lease, held: Sequence[Held]) -> Sequence[Held]:
        """What the stages have once the caches of layers that moved are where those are now.

        Raises what ended the plan meanwhile; then they are still where they were.
        """
        plan, former, total = lease.plan, self._former, self.rows_known
        if former is not None and total and not self._afresh:
            found = moves(plan, held, former[0], total)
            stages = enumerate(held)
            fetching = [self._fetch(plan, index, one, found, total) for index, one in stages]
            held = await asyncio.gather(*fetching)
            if lease.over is not None:
                raise lease.over
        await self._let_go()
        self._former = plan, self.session_id
        return held

    async def _fetch(
        self, plan: Plan, index: int, held: Held, found: Sequence[Move], total: int
    ) -> Held:
        """What a stage has once it has fetched what it lacks of `total` tokens."""
        for move in found:
            if move.stage == index:
                request = FetchCaches(plan.plan_id, self.session_id, move.layers, move.giver, total)
                held = await self.road.fetch(plan, index, request) or held
        return held

    async def _close(self, plan: Plan) -> None:
        """The stages of a plan need not know the session any more; perhaps the conversation."""
        paused = self._paused and not self._afresh
        name = None if self._paused else self.conversation
        closing = CloseSession(self.session_id, self._left_behind(), paused, name)
        await self.road.close(plan, closing)
        if not self._paused and self._former is not None and self._former[0] is not plan:
            await self._let_go()

    async def _let_go(self) -> None:
        """Nobody asks any more for what was kept of the conversation under the former plan."""
        if self._former is not None:
            plan, session = self._former
            await self.road.close(plan, CloseSession(session, conversation=self.conversation))

    async def _answer(self, answer: Answer) -> StepAnswer:
        self._settled = False
        try:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                found = await answer
        except TimeoutError:
            raise GenerationFailed(f"a step had no answer within {STEP_TIMEOUT_S:.0f} s") from None
        self._settled = True
        return found

    def _pause(self, error: PotluckError) -> None:
        if not self._paused:
            self._paused = True
            if isinstance(error, PlanReplaced):
                self.moves += 1
            else:
                self.replays += 1
            self.road.paused(self, str(error))

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.road.resumed(self)
