"""What devices say to each other about one conversation, beside the tensors themselves."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.ids import Epoch, PeerId, PlanId, SessionId
from runtime.sampling import Sampling

OPEN_SESSION = "session.open"
CLOSE_SESSION = "session.close"
STEP_FAILED = "session.step_failed"


@dataclass(frozen=True, slots=True)
class OpenSession:
    """From the owner to each stage: make room for a conversation of at most `context` tokens."""

    epoch: Epoch
    plan: PlanId
    session: SessionId
    owner: PeerId
    sampling: Sampling
    context: int


@dataclass(frozen=True, slots=True)
class CloseSession:
    """From the owner to each stage: the conversation's caches may go."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class StepFailed:
    """From a stage to the owner: a step could not be done here, and why."""

    plan: PlanId
    session: SessionId
    reason: str
    lost: bool  # the step is right, but the next device is gone: the plan is over
