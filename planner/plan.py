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

    def scaled(self, count: int, to: int) -> Span:
        """The part of `to` things that this is of `count`; neighbours stay neighbours."""
        first, last = ((2 * edge * to + count) // (2 * count) for edge in (self.first, self.last))
        return Span(first, last)


class Split(StrEnum):
    """How the devices of a stage share a pass of many tokens."""

    WHOLE = "whole"  # one device computes all of it
    HYBRID = "hybrid"  # heads and columns are cut, and between them each has its rows (Galaxy)
    TENSOR = "tensor"  # heads and columns are cut, all have all rows in between (Megatron)
    SEQUENCE = "sequence"  # rows are cut; all have all weights, and exchange keys and values


class Wire(StrEnum):
    """As what numbers travel inside a stage."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"  # with a scale for each row


ROW_UNITS = 1 << 10  # what the spans of `Share.rows` add up to, however many tokens a pass has

# Where a walk changes, for those who walk and those who price it. Choices: none of them was tuned.
MIN_SHARED_ROWS = 32  # below, all devices have all rows: each would compute a handful of its own
FEW_ROWS = 16  # up to here a sum goes to everybody at once: a hop costs more than those bytes
MIN_CHUNK_ROWS = 32  # of a prompt through a pipeline: below, a stage is bound by reading weights


def even_units(count: int) -> list[Span]:
    """As many of ROW_UNITS for each of so many devices."""
    return [Span(ROW_UNITS * i // count, ROW_UNITS * (i + 1) // count) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Share:
    """One device's part of a stage. A field that is None is not cut: the device has all of it.

    `rows` says which part of a pass's tokens, in units of 1 / ROW_UNITS.
    """

    device: PeerId
    heads: Span | None = None  # query heads; the KV heads that they need come with them
    columns: Span | None = None  # of the MLP
    vocab: Span | None = None
    rows: Span | None = None
    samples: Span | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of layers and the devices that hold it together.

    A pass is cut into `tiles` runs of rows, of which one can travel while the next is computed.
    """

    layers: Span
    shares: tuple[Share, ...]
    split: Split = Split.WHOLE
    tiles: int = 1
    wire: Wire = Wire.FP32

    @property
    def lead(self) -> PeerId:
        """The device that takes steps in, says who computes what, and sends on what comes out."""
        return self.shares[0].device

    @property
    def row_units(self) -> tuple[Span, ...]:
        """Each share's part of the rows, in 1 / ROW_UNITS; even where the plan does not say."""
        pairs = zip(self.shares, even_units(len(self.shares)), strict=True)
        return tuple(own if share.rows is None else share.rows for share, own in pairs)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a plan has room for: so many conversations at once, each of so many tokens."""

    sessions: int
    context: int  # tokens


@dataclass(frozen=True, slots=True)
class Effort:
    """What a device does in one pass through all stages, in seconds."""

    compute_s: float
    wire_s: float  # its link carries what it sends
    wait_s: float  # it computes nothing, for the others are not as far


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What one device of a stage is expected to do: the prompt, and a token of the answer."""

    stage: int
    share: int  # which of the stage's
    prefill: Effort
    decode: Effort


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model expects; later held against what was measured."""

    prefill_s: float  # for PREFILL_TOKENS tokens, from the first stage's start to the first token
    decode_s: float  # one token, all stages and hops
    wire_bytes_per_token: int
    memory_bytes: tuple[tuple[PeerId, int], ...]
    forecasts: tuple[StageForecast, ...] = ()


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
    head: tuple[Share, ...] = ()  # who holds which rows of the vocabulary; empty: the last lead all

    @property
    def devices(self) -> tuple[PeerId, ...]:
        """Every device with a share, each once, in the order of the stages."""
        shares = [*(share for stage in self.stages for share in stage.shares), *self.head]
        return tuple(dict.fromkeys(share.device for share in shares))

    def layers_of(self, device: PeerId) -> Span | None:
        """The layers `device` has a part of in this plan: none behind the last, if it has rows of
        the vocabulary alone. None if it has no share at all.
        """
        for stage in self.stages:
            if any(share.device == device for share in stage.shares):
                return stage.layers
        end = self.stages[-1].layers.last
        return Span(end, end) if any(share.device == device for share in self.head) else None

    def stage_of(self, device: PeerId) -> int | None:
        """The number of the stage in which `device` has a share, or None."""
        for index, stage in enumerate(self.stages):
            if any(share.device == device for share in stage.shares):
                return index
        return None
