"""What devices say to each other about one conversation, beside the tensors themselves."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import ProtocolError
from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.limits import MAX_TENSOR_DIM
from planner.plan import Span
from runtime.history import MAX_HISTORY_BYTES
from runtime.prefix import DIGEST_BYTES, MAX_BLOCKS
from runtime.sampling import Sampling

OPEN_SESSION = "session.open"
CLOSE_SESSION = "session.close"
FETCH_CACHES = "session.fetch_caches"
ASK_CACHE = "session.ask_cache"
STEP_FAILED = "session.step_failed"


@dataclass(frozen=True, slots=True)
class OpenSession:
    """From the owner to each stage: make room for a conversation of at most `context` tokens.

    `conversation` is its name, which stays the same from plan to plan: what a stage still has of
    it need not be computed again, unless all is to begin `afresh`.
    Where a penalty is on, `history` is `History.pack()` of all tokens so far; else it is empty.
    `prefix` is the chain (`runtime.prefix`) of the tokens that will come: what a stage has of them
    need not be computed again. Raises ProtocolError for one that is larger than it can be.
    """

    epoch: Epoch
    plan: PlanId
    session: SessionId
    owner: PeerId
    sampling: Sampling
    context: int
    history: bytes = b""
    prefix: bytes = b""
    conversation: SessionId | None = None
    afresh: bool = False

    def __post_init__(self) -> None:
        _check_chain(self.prefix)
        if len(self.history) > MAX_HISTORY_BYTES:
            raise ProtocolError(
                f"a history has at most {MAX_HISTORY_BYTES} bytes; got {len(self.history)}"
            )


@dataclass(frozen=True, slots=True)
class CloseSession:
    """From the owner to each stage: the conversation's caches may go.

    With a `prefix`, the chain of the tokens that they hold, a stage may keep them for another;
    where it is only `paused`, until the next plan. What a device still has of the `conversation`
    for layers that are others' by now may go as well.
    """

    session: SessionId
    prefix: bytes = b""
    paused: bool = False
    conversation: SessionId | None = None

    def __post_init__(self) -> None:
        _check_chain(self.prefix)


@dataclass(frozen=True, slots=True)
class FetchCaches:
    """From the owner to a stage: what these layers lack of a conversation, the `giver` has, which
    had the layers before; of at most so many `tokens`. Answered with `Held`.
    """

    plan: PlanId
    session: SessionId
    layers: Span
    giver: PeerId
    tokens: int

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)


@dataclass(frozen=True, slots=True)
class AskCache:
    """From the device that has a layer to the one that had it: the cache of a conversation, in
    frames of this epoch, plan and session. Answered with how many tokens come; 0: it has none.
    """

    epoch: Epoch
    plan: PlanId
    session: SessionId
    conversation: SessionId
    layer: int
    tokens: int

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)
        if not 0 <= self.layer < MAX_TENSOR_DIM:
            raise ProtocolError(f"layer {self.layer} is beyond any model")


@dataclass(frozen=True, slots=True)
class StepFailed:
    """From a stage to the owner: a step could not be done here, and why."""

    plan: PlanId
    session: SessionId
    reason: str
    lost: bool  # the step is right, but the next device is gone: the plan is over


def _check_tokens(tokens: int) -> None:
    if not 0 < tokens <= MAX_TENSOR_DIM:
        raise ProtocolError(f"a cache has 1 to {MAX_TENSOR_DIM} tokens; {tokens} were asked for")


def _check_chain(chain: bytes) -> None:
    most = MAX_BLOCKS * DIGEST_BYTES
    if len(chain) > most or len(chain) % DIGEST_BYTES:
        raise ProtocolError(
            f"a chain has at most {most} bytes, in digests of {DIGEST_BYTES}; got {len(chain)}"
        )
