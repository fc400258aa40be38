"""A device's post: its place in a plan in force, and the conversations that go through it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.ids import PeerId, SessionId
from mesh.tensor_frame import DType, Kind
from planner.plan import Plan
from runtime.assembly import Assembly, Expected
from runtime.session_messages import OpenSession
from runtime.stage import Stage
from runtime.turns import MAX_STEP_ROWS


@dataclass(slots=True)
class Conversation:
    """One session as a stage sees it."""

    opened: OpenSession
    assembly: Assembly | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """This device's place in the plan in force."""

    plan: Plan
    index: int  # of its stage
    stage: Stage
    hidden_size: int
    conversations: dict[SessionId, Conversation] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        return self.index == len(self.plan.stages) - 1

    def upstream(self, opened: OpenSession) -> PeerId:
        """Who sends steps here: the session's owner, or the stage before."""
        return opened.owner if self.index == 0 else self.plan.stages[self.index - 1].device

    def downstream(self, opened: OpenSession) -> PeerId:
        """Who gets what this stage computes: the next stage, or the session's owner."""
        return opened.owner if self.is_last else self.plan.stages[self.index + 1].device

    def expected(self, opened: OpenSession) -> Expected:
        if self.index == 0:
            return Expected(Kind.TOKENS, DType.INT32, 1, MAX_STEP_ROWS, opened.context)
        width = self.hidden_size
        return Expected(Kind.HIDDEN, DType.FLOAT32, width, MAX_STEP_ROWS, opened.context)
