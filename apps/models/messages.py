"""What devices say to each other about the models they have, before any piece is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from apps.planning.messages import ModelRef, Outcome
from mesh.ids import ModelId, PeerId
from planner.plan import Span
from runtime.cut import WHOLE, Cut

LIST_MODELS = "model.list"
FIND_MODEL = "model.find"
HAVE_MODEL = "model.have"
BRING_SHARE = "model.bring"
LOADED_MODEL = "model.loaded"
TRANSFERS = "model.transfers"

MAX_RUNS = 1500  # of pieces, in one answer; whoever has more tells of the longest


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model on one device's disk. `have_bytes` of `size_bytes` are there."""

    name: str
    model: ModelId
    purpose: str  # a `runtime.purpose.Purpose`; empty where too little of it is here to say
    size_bytes: int
    have_bytes: int
    origin: str  # what it was pulled as; empty for a file that a person put there

    @property
    def is_whole(self) -> bool:
        return self.have_bytes == self.size_bytes


@dataclass(frozen=True, slots=True)
class ModelList:
    models: tuple[HeldModel, ...]


class Pull(StrEnum):
    """How far a device is with bringing a model from outside."""

    NONE = "none"
    DECIDING = "deciding"  # it asks the others whether they have it, or bring it already
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class FindRequest:
    """By the name a person typed, or by what it was pulled as; the other one is empty."""

    name: str
    origin: str


@dataclass(frozen=True, slots=True)
class FindReply:
    """`model` is None where there is none; `pull` says whether one of that origin is coming."""

    model: ModelRef | None
    is_whole: bool
    pull: Pull


@dataclass(frozen=True, slots=True)
class HaveRequest:
    model: ModelId


@dataclass(frozen=True, slots=True)
class HaveReply:
    """`manifest` is the id of the manifest by which pieces are asked for; None where there is
    nothing, or (`pending`) where it is still being made. `runs` of pieces [first, last) are here.
    """

    name: str
    origin: str
    manifest: bytes | None
    manifest_bytes: int
    is_whole: bool
    runs: tuple[tuple[int, int], ...]
    pending: bool


NOTHING = HaveReply("", "", None, 0, is_whole=False, runs=(), pending=False)


@dataclass(frozen=True, slots=True)
class BringRequest:
    """From the leader, before a plan's epoch begins: have on disk what these layers need, or these
    shares of them.
    """

    model: ModelRef
    layers: Span
    cut: Cut = WHOLE


@dataclass(frozen=True, slots=True)
class BringReply:
    """WAIT: `done_bytes` of `wanted_bytes` have come; ask again."""

    outcome: Outcome
    reason: str
    done_bytes: int
    wanted_bytes: int
    is_nowhere: bool = False  # no device here has what is missing


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What one device holds of a model in memory; `sessions` is 0 while it is not in force."""

    model: str
    layers: tuple[int, ...]
    head: bool
    size_bytes: int  # of the weights
    sessions: int
    conversations: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that one device holds."""

    models: tuple[LoadedModel, ...]
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class SourceBytes:
    """How much came from one device in a transfer, and how many damaged pieces."""

    device: PeerId
    size_bytes: int
    damaged: int


@dataclass(frozen=True, slots=True)
class TransferState:
    """A transfer under way, as a person may watch it."""

    name: str
    model: ModelId
    done_bytes: int
    wanted_bytes: int
    bytes_per_s: float
    sources: tuple[SourceBytes, ...]


@dataclass(frozen=True, slots=True)
class Transfers:
    transfers: tuple[TransferState, ...]
