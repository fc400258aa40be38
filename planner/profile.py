"""What was measured of devices, links and models: the planner's only input."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum

from mesh.ids import ModelId, PeerId
from planner.plan import Span


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds at several token counts (ascending); linear between points, proportional beyond."""

    points: tuple[tuple[int, float], ...]

    def at(self, tokens: int) -> float:
        counts = [count for count, _ in self.points]
        index = bisect_left(counts, tokens)
        if index < len(counts) and counts[index] == tokens:
            return self.points[index][1]
        if index == 0:
            return self.points[0][1]
        if index == len(counts):
            last_count, last_s = self.points[-1]
            return last_s * tokens / last_count
        (left, left_s), (right, right_s) = self.points[index - 1], self.points[index]
        return left_s + (right_s - left_s) * (tokens - left) / (right - left)


@dataclass(frozen=True, slots=True)
class Cuttable:
    """How a layer is cut into shares, and what each part then takes; bytes as held in memory.

    Heads and columns may be cut anywhere, and no number of the model changes. Where a cut does not
    fall on a unit, the map that closes attention or MLP holds the rest of that unit beside it.
    """

    heads: int  # query heads
    kv_heads: int  # a share has those that its query heads read, whoever else has them too
    head_dim: int
    columns: int  # of the MLP
    output_unit: int  # of the heads * head_dim inputs of what closes attention
    column_unit: int  # of the columns, which are the inputs of what closes the MLP
    query_bytes: int  # of one query head, without what closes attention
    kv_bytes: int  # of one KV head
    output_bytes: int  # of `output_unit` inputs: what closes attention
    column_bytes: int  # of one column, without what closes the MLP
    down_bytes: int  # of `column_unit` columns: what closes the MLP
    rest_bytes: int  # what each share has whole: norms, biases, what goes with the layer

    def kv_heads_of(self, heads: Span) -> Span:
        """The KV heads that these query heads read."""
        group = self.heads // self.kv_heads
        return Span(heads.first // group, -(-heads.last // group))

    @property
    def whole_bytes(self) -> int:
        """What the whole layer takes."""
        return self.share_bytes(Span(0, self.heads), Span(0, self.columns))

    def share_bytes(self, heads: Span, columns: Span) -> int:
        """What a share of the layer takes; but for the first, at most: some biases are its own."""
        inner = Span(heads.first * self.head_dim, heads.last * self.head_dim)
        return (
            len(heads) * self.query_bytes
            + len(self.kv_heads_of(heads)) * self.kv_bytes
            + _units(inner, self.output_unit) * self.output_bytes
            + len(columns) * self.column_bytes
            + _units(columns, self.column_unit) * self.down_bytes
            + self.rest_bytes
        )


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer's size. `window` is the sliding attention window in tokens, None for full.

    A share of the layer has that part of `kv_bytes_per_token` and `session_bytes` that it has of
    the KV heads.
    """

    weight_bytes: int  # as held in memory while running
    kv_bytes_per_token: int
    window: int | None
    session_bytes: int = 0  # what a conversation takes here whatever its length
    cut: int = 0  # which of ModelProfile.cuts is this layer's


class Stacks(StrEnum):
    """What a model is made of, and so what a request to it is."""

    DECODER = "decoder"  # a prompt, then token by token; a row sees those before it
    ENCODER = "encoder"  # one pass, in which all rows see each other
    BOTH = "both"  # a source through the encoder, then token by token


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a plan must know of a model, read from the file's header alone."""

    model: ModelId
    name: str
    layers: tuple[LayerProfile, ...]
    head_bytes: int  # final norm and vocabulary head, as held in memory
    hidden_size: int
    vocabulary: int
    context: int  # tokens, the model's own maximum
    # Those that differ, since a profile travels with every plan: a few at most.
    cuts: tuple[Cuttable, ...] = ()
    stacks: Stacks = Stacks.DECODER

    def cut_of(self, index: int) -> Cuttable | None:
        """How layer `index` is cut into shares; None where that is not known: it is held whole."""
        number = self.layers[index].cut
        return self.cuts[number] if 0 <= number < len(self.cuts) else None


@dataclass(frozen=True, slots=True)
class ShareCurves:
    """Seconds of what a device does in a layer of which it has so many heads and columns, by rows.

    The rows are the first of a text: none see others before them.
    """

    heads: int
    columns: int
    project: Curve  # opening attention, and all that is done to queries, keys and values alone
    attend: Curve  # where the rows meet
    close: Curve  # closing attention
    mlp: Curve  # all of it


@dataclass(frozen=True, slots=True)
class PartCurves:
    """A layer's parts, of the whole layer and of a small share of it: others lie between."""

    whole: ShareCurves
    small: ShareCurves
    connect: Curve  # the sums and norms around the parts, which work row by row
    # Seconds a number [of rows x width]: to be added, and to be packed and unpacked for the wire.
    add_s: float
    fp16_s: float
    int8_s: float


@dataclass(frozen=True, slots=True)
class WireCost:
    """What sending and receiving takes of the processor, in seconds of a device that computes."""

    send_s_per_byte: float
    send_s_per_frame: float
    receive_s_per_byte: float
    receive_s_per_frame: float
    own_core: bool  # whether that is a core which computing leaves free


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What one device measured of itself with this model."""

    device: PeerId
    name: str
    memory_bytes: int  # what Potluck may use for weights, caches and scratch
    layer: Curve  # one layer's forward pass, mean over the kinds of layers
    head_s: float  # final norm, vocabulary head and sampling, for one token
    scratch_bytes: int  # taken once, whatever the share
    parts: PartCurves | None = None  # None: its layers cannot be shared
    wire: WireCost | None = None  # None: not measured
    processor: str = ""  # what computes, in its maker's words; empty: not known


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """One direction of one link, measured through the very transport that tensors use."""

    source: PeerId
    target: PeerId
    round_trip_s: float
    bytes_per_s: float
    burst_bytes: float = 0.0  # that go through at once, after a pause


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything measured, in one value."""

    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]
    # What people call the devices, those too that are gone or cannot take part.
    names: tuple[tuple[PeerId, str], ...] = ()

    def name_of(self, device: PeerId) -> str:
        known = {one.device: one.name for one in self.devices} | dict(self.names)
        return known.get(device, device.short)


def _units(span: Span, unit: int) -> int:
    """How many units the span touches."""
    return -(-span.last // unit) - span.first // unit
