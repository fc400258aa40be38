"""What the worker does next: which steps share a turn, and how many rows of each.

Every conversation that waits with one token is in every turn, for they cost little more together
than one alone. A long prompt goes in slices beside them, so that no stream stops for long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from mesh.ids import PlanId
from mesh.tensor_frame import FrameHeader
from planner.plan import Span
from runtime.stage import Slice

MAX_STEP_ROWS: Final = 512  # tokens in one step; a longer prompt comes in several
SHORT_ROWS: Final = 4  # a step of so few rows is a token of a stream, and never waits for a prompt
SLICE_S: Final = 0.2  # how long a slice of a prompt may hold up the others
FIRST_SLICE_ROWS: Final = 64  # until it is known how long a row takes
MIN_SLICE_ROWS: Final = 16  # below, the weights are read again for too little


@dataclass(slots=True, eq=False)
class Waiting:
    """A whole step, and how far the worker has come with it."""

    header: FrameHeader
    rows: torch.Tensor  # [S, width]
    layers: Span | None = None  # of this stage, where some alone compute it again; None: all
    done: int = 0
    outs: list[torch.Tensor] = field(default_factory=list)  # of the slices done, for the next stage

    @property
    def left(self) -> int:
        return len(self.rows) - self.done


def slice_of(step: Waiting, rows: int) -> Slice:
    """The next rows of a step."""
    last = step.done + rows
    return Slice(
        step.header.session,
        step.header.position + step.done,
        step.rows[step.done : last],
        choose=step.header.choose and last == len(step.rows),
        is_source=step.header.kind.is_source,
        layers=step.layers,
    )


@dataclass(slots=True)
class Pace:
    """How long a row of a prompt takes here, as the last slices showed."""

    row_s: float | None = None

    def note(self, rows: int, seconds: float) -> None:
        """A turn of `rows` rows in all took `seconds`."""
        if rows >= MIN_SLICE_ROWS:
            row_s = seconds / rows
            self.row_s = row_s if self.row_s is None else (self.row_s + row_s) / 2

    @property
    def slice_rows(self) -> int:
        """How many rows of prompts go into a turn that others wait for."""
        if self.row_s is None:
            return FIRST_SLICE_ROWS
        return max(MIN_SLICE_ROWS, min(MAX_STEP_ROWS, int(SLICE_S / self.row_s)))


def next_plan(waiting: Sequence[Waiting], last_turns: Mapping[PlanId, int]) -> PlanId:
    """Whose turn it is where several models wait: of the plan that has not had one for longest.

    `last_turns` numbers the last turn of each; of those that had none the oldest step decides.
    """
    plans = dict.fromkeys(step.header.plan for step in waiting)
    return min(plans, key=lambda plan: last_turns.get(plan, -1))


def next_turn(
    waiting: Sequence[Waiting], alone: bool, slice_rows: int
) -> list[tuple[Waiting, int]]:
    """The steps of the next turn, each with the number of its rows; the oldest come first.

    `alone`: there is one conversation only, so that a prompt holds up nobody. Of one conversation
    only the oldest step takes part. A source cannot be cut, for all its rows see each other: it
    takes the place of all slices of a turn, and the others wait for one of them at most.
    """
    first: dict[object, Waiting] = {}
    for step in waiting:
        first.setdefault(step.header.session, step)
    most = budget = MAX_STEP_ROWS if alone else slice_rows
    turn: list[tuple[Waiting, int]] = []
    for step in first.values():
        if step.left <= SHORT_ROWS:
            turn.append((step, step.left))
        elif step.header.kind.is_source:
            if budget == most:
                turn.append((step, step.left))
                budget = 0
        elif budget > 0:
            rows = min(step.left, budget)
            turn.append((step, rows))
            budget -= rows
    return turn
