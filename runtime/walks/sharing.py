"""Sharing: which steps of a turn the devices of a stage compute together, and their ends of it."""

from __future__ import annotations

from typing import Final

from mesh.ids import PeerId, SessionId
from mesh.limits import MAX_SESSIONS
from planner.plan import MIN_SHARED_ROWS, Plan, Split
from runtime.chores import Chores
from runtime.post import Post
from runtime.turns import MAX_STEP_ROWS, SHORT_ROWS, Waiting
from runtime.walks.group import Bounds, Group, Send

Steps = list[tuple[Waiting, int]]

MOST_TOKENS: Final = MAX_STEP_ROWS + MAX_SESSIONS * SHORT_ROWS  # in a turn: a prompt, and streams


def group_of(post: Post, me: PeerId, send: Send, chores: Chores) -> Group | None:
    """This device's end of its stage; None where it has the stage for itself."""
    stage = post.plan.stages[post.index]
    if stage.split is Split.WHOLE:
        return None
    return Group(post.plan, stage, me, send, _bounds(post), chores)


def _bounds(post: Post) -> Bounds:
    source, width = post.traffic.source, post.traffic.hidden_size
    most_rows = MOST_TOKENS
    if source is not None:
        most_rows = max(most_rows, source.max_rows)
        width = max(source.width, 1) if post.index == 0 else width
    return Bounds(most_rows, post.stage.widest, width)


class Solitude:
    """The conversations whose steps the lead of a stage computes alone, where its rows are cut.

    It has all weights, and the keys and values of all rows; so it takes the few rows of a token.
    From then on the others lack what it computed, and cannot take part in that conversation again.
    """

    def __init__(self, plan: Plan, index: int) -> None:
        self._is_possible = plan.stages[index].split is Split.SEQUENCE
        self._alone: set[SessionId] = set()

    def opened(self, session: SessionId) -> None:
        """All devices begin with the same tokens."""
        self._alone.discard(session)

    closed = opened

    def parts(self, turn: Steps) -> list[tuple[Steps, bool]]:
        """The turn in one part or two, each with whether the devices share it; tokens first."""
        alone = [(step, rows) for step, rows in turn if self._is_alone(step, rows)]
        shared = [(step, rows) for step, rows in turn if not self._is_alone(step, rows)]
        self._alone.update(
            step.header.session for step, _ in alone if not step.header.kind.is_source
        )
        return [(part, is_shared) for part, is_shared in ((alone, False), (shared, True)) if part]

    def _is_alone(self, step: Waiting, rows: int) -> bool:
        if not self._is_possible:
            return False
        return rows < MIN_SHARED_ROWS or step.header.session in self._alone
