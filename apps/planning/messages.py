"""What the leader and the devices say to each other about profiles and plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mesh.ids import Epoch, ModelId, PeerId, PlanId
from planner.plan import Capacity, Plan, Wire
from planner.profile import DeviceProfile, LinkProfile, ModelProfile
from runtime.compute.precision import Precision, resolved
from runtime.efforts import PlanEfforts
from runtime.refill import Held

NOTHING_HELD: Final = Held()

WANT_PLAN = "plan.want"
PREVIEW_PLAN = "plan.preview"
REPORT_PLAN = "plan.report"
PREPARE_PLAN = "plan.prepare"
COMMIT_PLAN = "plan.commit"
PROFILE_DEVICE = "profile.device"
REPORT_EFFORTS = "plan.efforts"
BLAME_DEVICE = "plan.blame"
LEAVE_PLANS = "plan.leave"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as one device knows it; on another device the path is only a hint.

    All devices of a plan hold the weights with the same `precision`.
    """

    model: ModelId
    name: str
    path: str
    precision: Precision = Precision.AUTO

    def is_held_like(self, other: ModelRef) -> bool:
        """Whether weights in memory for this one are those of the other."""
        return self.model == other.model and resolved(self.precision) == resolved(other.precision)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the mesh should be able to run. It travels with every plan, so no leader owns it."""

    model: ModelRef
    profile: ModelProfile
    capacity: Capacity
    wire: Wire = Wire.FP32  # the narrowest type that numbers may travel as between its devices

    def covers(self, other: Wish) -> bool:
        """Whether a plan for this wish serves the other one too."""
        return (
            self.model.is_held_like(other.model)
            and self.wire is other.wire
            and other.capacity.sessions <= self.capacity.sessions
            and other.capacity.context <= self.capacity.context
        )

    def with_room_of(self, other: Wish | None) -> Wish:
        """This wish, with no less room than the other has for the same weights."""
        if other is None or not other.model.is_held_like(self.model):
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
class LeaveReply:
    """To a device that is about to go. OK: no plan in force has a share on it any more, and it
    hears so; IMPOSSIBLE: the others cannot do without it, for this reason.
    """

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class OpenReply:
    """A device's answer to OpenSession; `held` is what it has of the conversation already."""

    outcome: Outcome
    reason: str
    held: Held = NOTHING_HELD


@dataclass(frozen=True, slots=True)
class InForce:
    """A plan in force, and the wish that it serves."""

    plan: Plan
    wish: Wish
    idle_s: float  # since the model was last used, as far as the sender knows


@dataclass(frozen=True, slots=True)
class Known(InForce):
    """The same as a device knows it, and how many conversations have a place there."""

    conversations: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a device knows of the plans in force, at most one a model."""

    known: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class EffortsReport:
    """What a device measured of its last turns, under each plan in which it has a share."""

    measured: tuple[PlanEfforts, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """What another plan has room for from now on."""

    plan: PlanId
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Prepare:
    """First phase: load what the plan gives you; the model's old plan runs on if it can.

    Of the other models only the plans in `stay` are in force. Those in `leave` make room, and a
    device where one of them has a conversation answers BUSY.
    """

    plan: Plan
    wish: Wish
    stay: tuple[Room, ...]
    leave: tuple[PlanId, ...]


@dataclass(frozen=True, slots=True)
class PrepareReply:
    """IMPOSSIBLE: this device cannot take its share, whoever asks; RETRY: it was not asked right
    now, or not by its leader; BUSY: what should leave is in use.
    """

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Second phase: in this epoch these plans are in force, and no others.

    It says all there is, so that a device may hear it at any time, and more than once.
    """

    epoch: Epoch
    in_force: tuple[InForce, ...]


@dataclass(frozen=True, slots=True)
class CommitReply:
    """The plans in which this device has a share that it does not hold ready."""

    lacks: tuple[PlanId, ...]


@dataclass(frozen=True, slots=True)
class Blame:
    """To the leader, from a device of a plan: another of its devices computes wrongly."""

    model: ModelId
    plan: PlanId
    device: PeerId
    reason: str


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
