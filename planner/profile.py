"""What was measured of devices, links and models: the planner's only input."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from mesh.ids import ModelId, PeerId


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
class LayerProfile:
    """One layer's size. `window` is the sliding attention window in tokens, None for full."""

    weight_bytes: int  # as held in memory while running
    kv_bytes_per_token: int
    window: int | None
    session_bytes: int = 0  # what a conversation takes here whatever its length


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


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What one device measured of itself with this model."""

    device: PeerId
    name: str
    memory_bytes: int  # what Potluck may use for weights, caches and scratch
    layer: Curve  # one layer's forward pass, mean over the kinds of layers
    head_s: float  # final norm, vocabulary head and sampling, for one token
    scratch_bytes: int  # taken once, whatever the share


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """One direction of one link, measured through the very transport that tensors use."""

    source: PeerId
    target: PeerId
    round_trip_s: float
    bytes_per_s: float


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
