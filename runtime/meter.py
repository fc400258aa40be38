"""The meter: around each turn of this device, and beside each frame that comes or goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from mesh.ids import PlanId
from mesh.tensor_frame import FrameHeader
from runtime.chores import Chores
from runtime.efforts import PlanEfforts, Turn, of_prompts, of_tokens
from runtime.stage import Slice
from runtime.turns import SHORT_ROWS

STUCK_FACTOR: Final = 5  # times as long as such turns take here, and a device is degraded
STUCK_LEAST_S: Final = 2.0  # below, a busy moment of the machine would count
FIRST_TURN_S: Final = 6.0  # taken for the length of a turn where none was measured: loops compile
WINDOW: Final = 48  # turns of each kind: a few seconds of an answer, some prompts


@dataclass(slots=True)
class _Kept:
    """Of one plan."""

    prompts: deque[Turn] = field(default_factory=lambda: deque(maxlen=WINDOW))
    tokens: deque[Turn] = field(default_factory=lambda: deque(maxlen=WINDOW))
    # The last ones of both kinds, with that under way: what they sent is heard of later.
    started: deque[Turn] = field(default_factory=lambda: deque(maxlen=2 * WINDOW))
    is_under_way: bool = False
    is_prompt: bool = False  # the one under way
    ended_s: float = 0.0  # the last one
    early_bytes: int = 0  # came for the next one


class Meter:
    """Of the plans in force here. Everything runs in the event loop."""

    def __init__(self, chores: Chores, now_s: Callable[[], float]) -> None:
        """`chores` says how long the worker waited, and what else it did."""
        self._chores = chores
        self._now_s = now_s
        self._plans: dict[PlanId, _Kept] = {}
        self._chores_s = 0.0  # done when the last turn ended

    def begin(self, plan: PlanId) -> None:
        """A plan is in force."""
        self._plans[plan] = _Kept()

    def end(self, plan: PlanId) -> None:
        """A plan is over, and nobody asks for it any more."""
        self._plans.pop(plan, None)

    @property
    def measured(self) -> tuple[PlanEfforts, ...]:
        """Of each plan in force."""
        return tuple(
            PlanEfforts(plan, of_prompts(kept.prompts), of_tokens(kept.tokens))
            for plan, kept in self._plans.items()
        )

    @property
    def is_stuck(self) -> bool:
        """Whether a turn under way takes far longer than such turns do here, and waits for nobody:
        this device lives, and its work does not get on.
        """
        if self._chores.is_idle:
            return False
        now_s = self._now_s()
        return any(
            now_s - kept.started[-1].started_s > _patience_s(kept)
            for kept in self._plans.values()
            if kept.is_under_way
        )

    @contextmanager
    def turn(self, plan: PlanId, slices: Sequence[Slice], used_s: float | None) -> Iterator[None]:
        """Around a turn; one that fails does not count. `used_s` is when a conversation came or
        went last: before it nobody waited.
        """
        kept = self._plans.get(plan, _Kept())
        is_prompt = any(each.is_source or len(each.rows) > SHORT_ROWS for each in slices)
        started_s, waited_s = self._now_s(), self._chores.waited_s
        turn = Turn(sum(len(each.rows) for each in slices), len(slices), started_s)
        turn.received_bytes, kept.early_bytes = kept.early_bytes, 0
        kept.started.append(turn)
        kept.is_under_way, kept.is_prompt = True, is_prompt
        since_s = max(kept.ended_s, used_s if used_s is not None else started_s)
        idle_s = max(0.0, started_s - since_s)
        beside_s = min(idle_s, self._chores.worked_s - self._chores_s)
        try:
            yield
            kept.ended_s = self._now_s()
            waited_s = self._chores.waited_s - waited_s
            turn.compute_s = max(0.0, kept.ended_s - started_s - waited_s) + beside_s
            turn.wait_s = waited_s + idle_s - beside_s
            (kept.prompts if is_prompt else kept.tokens).append(turn)
        finally:
            kept.is_under_way = False
            self._chores_s = self._chores.worked_s

    def received(self, plan: PlanId, size_bytes: int) -> None:
        """A frame came: for the turn under way, or for the next one."""
        kept = self._plans.get(plan)
        if kept is None:
            return
        if kept.is_under_way:
            kept.started[-1].received_bytes += size_bytes
        else:
            kept.early_bytes += size_bytes

    def sent(self, header: FrameHeader, since_s: float, seconds: float) -> None:
        """A frame, sent at `since_s`, has arrived elsewhere; its link was busy with it so long."""
        kept = self._plans.get(header.plan)
        for turn in reversed(kept.started if kept is not None else ()):
            if turn.started_s <= since_s:
                turn.sent_bytes += header.tile_bytes
                turn.wire_s += seconds
                return


def _patience_s(kept: _Kept) -> float:
    """How long the turn under way may take. Prompts take as long as they have rows."""
    turn = kept.started[-1]
    if kept.is_prompt:
        paces = [one.compute_s / one.rows for one in kept.prompts if one.rows]
        expected_s = max(paces, default=FIRST_TURN_S / turn.rows) * turn.rows
    else:
        expected_s = max((one.compute_s for one in kept.tokens), default=FIRST_TURN_S)
    return max(STUCK_LEAST_S, STUCK_FACTOR * expected_s)
