"""What the leader and the devices say to each other about profiles and plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from mesh.ids import ModelId, PeerId
from planner.plan import Capacity, Plan
from planner.profile import DeviceProfile, LinkProfile, ModelProfile
from runtime.compute.precision import Precision

WANT_PLAN = "plan.want"
PREVIEW_PLAN = "plan.preview"
REPORT_PLAN = "plan.report"
PREPARE_PLAN = "plan.prepare"
COMMIT_PLAN = "plan.commit"
PROFILE_DEVICE = "profile.device"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as one device knows it; on another device the path is only a hint.

    All devices of a plan hold the weights with the same `precision`.
    """

    model: ModelId
    name: str
    path: str
    precision: Precision = Precision.AUTO


@dataclass(frozen=True, slots=True)
class Wish:
    """What the mesh should be able to run. It travels with every plan, so no leader owns it."""

    model: ModelRef
    profile: ModelProfile
    capacity: Capacity

    def covers(self, other: Wish) -> bool:
        """Whether a plan for this wish serves the other one too."""
        return (
            self.model.model == other.model.model
            and other.capacity.sessions <= self.capacity.sessions
            and other.capacity.context <= self.capacity.context
        )

    def with_room_of(self, other: Wish | None) -> Wish:
        """This wish, with no less room than the other has for the same model."""
        if other is None or other.model.model != self.model.model:
            return self
        return replace(
            self,
            capacity=Capacity(
                max(self.capacity.sessions, other.capacity.sessions),
                max(self.capacity.context, other.capacity.context),
            ),
        )


class Outcome(StrEnum):
    OK = "ok"
    RETRY = "retry"  # the mesh is changing; ask again
    WAIT = "wait"  # it is under way; ask again
    BUSY = "busy"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class WantReply:
    """With OK a plan in force, and the wish it serves; else `reason` says why there is none."""

    outcome: Outcome
    reason: str
    plan: Plan | None = None
    wish: Wish | None = None


@dataclass(frozen=True, slots=True)
class OpenReply:
    """A stage's answer to OpenSession; `held` tokens of the prompt it has computed before."""

    outcome: Outcome
    reason: str
    held: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a device knows of plans: the last one in force here, and how busy it is."""

    plan: Plan | None
    wish: Wish | None
    conversations: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """First phase: load what the plan gives you, keep running the old plan if you can."""

    plan: Plan
    wish: Wish


@dataclass(frozen=True, slots=True)
class PrepareReply:
    """IMPOSSIBLE: this device cannot take its share, whoever asks; RETRY: it was not asked right
    now, or not by its leader.
    """

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Second phase: the plan is in force. Devices without a stage learn of it here too."""

    plan: Plan
    wish: Wish


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """From the leader: what this device takes for the model, and its links to these peers."""

    wish: Wish
    peers: tuple[PeerId, ...]
    measure: bool  # whether to measure what is not known, which takes seconds


@dataclass(frozen=True, slots=True)
class ProfileReply:
    """`absent` says why this device cannot take part; else there is a profile."""

    profile: DeviceProfile | None
    absent: str
    links: tuple[LinkProfile, ...]
    unmeasured: bool  # something is missing that could be measured
