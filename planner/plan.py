"""The one shape everything shares: a plan says who holds and does what, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mesh.ids import Epoch, ModelId, PeerId, PlanId


class Job(StrEnum):
    RUN = "run"
    TRAIN = "train"
    TUNE = "tune"


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range [first, last)."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __contains__(self, index: int) -> bool:
        return self.first <= index < self.last

    def __str__(self) -> str:
        return f"{self.first}..{self.last - 1}" if len(self) else "none"


@dataclass(frozen=True, slots=True)
class Share:
    """One device's part of a stage. A field that is None is not cut: the device has all of it."""

    device: PeerId
    heads: Span | None = None
    columns: Span | None = None
    vocab: Span | None = None
    rows: Span | None = None
    samples: Span | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of layers and the devices that hold it together."""

    layers: Span
    shares: tuple[Share, ...]

    @property
    def device(self) -> PeerId:
        """The device of a stage that is not shared."""
        (share,) = self.shares
        return share.device


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a plan has room for: so many conversations at once, each of so many tokens."""

    sessions: int
    context: int  # tokens


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model expects; later held against what was measured."""

    prefill_s: float  # for PREFILL_TOKENS tokens, from the first stage's start to the first token
    decode_s: float  # one token, all stages and hops
    wire_bytes_per_token: int
    memory_bytes: tuple[tuple[PeerId, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The first stage also embeds; the last also holds the norm, the head and the sampler."""

    epoch: Epoch
    plan_id: PlanId
    model: ModelId
    model_name: str
    job: Job
    stages: tuple[Stage, ...]
    capacity: Capacity
    reason: str
    predicted: Prediction

    @property
    def devices(self) -> tuple[PeerId, ...]:
        """Every device with a share, each once, in the order of the stages."""
        return tuple(dict.fromkeys(s.device for stage in self.stages for s in stage.shares))

    def layers_of(self, device: PeerId) -> Span | None:
        """The layers `device` computes in this plan, or None if it has no share."""
        for stage in self.stages:
            if any(share.device == device for share in stage.shares):
                return stage.layers
        return None
