"""What the leader and the devices say to each other about profiles and plans."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mesh.ids import ModelId, PeerId
from planner.plan import Capacity, Plan
from planner.profile import DeviceProfile, LinkProfile, ModelProfile

WANT_PLAN = "plan.want"
PREVIEW_PLAN = "plan.preview"
REPORT_PLAN = "plan.report"
PREPARE_PLAN = "plan.prepare"
COMMIT_PLAN = "plan.commit"
PROFILE_DEVICE = "profile.device"
PROFILE_LINKS = "profile.links"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model file as one device knows it; on another device the path is only a hint."""

    model: ModelId
    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What the mesh should be able to run. It travels with every plan, so no leader owns it."""

    model: ModelRef
    profile: ModelProfile
    capacity: Capacity


class Outcome(StrEnum):
    OK = "ok"
    RETRY = "retry"  # the mesh is changing; ask again
    BUSY = "busy"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class WantReply:
    """`plan` is in force if the outcome is OK; else `reason` says why not."""

    outcome: Outcome
    reason: str
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class OpenReply:
    """A stage's answer to OpenSession."""

    outcome: Outcome
    reason: str


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
class Prepared:
    loaded_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Second phase: the plan is in force. Devices without a stage learn of it here too."""

    plan: Plan
    wish: Wish


@dataclass(frozen=True, slots=True)
class ProfileReply:
    """`absent` says why this device cannot take part; else there is a profile."""

    profile: DeviceProfile | None
    absent: str


@dataclass(frozen=True, slots=True)
class ProfileLinks:
    """Measure the links from the receiver of this message to these devices."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class ProfileLinksReply:
    links: tuple[LinkProfile, ...]
