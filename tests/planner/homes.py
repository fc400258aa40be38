"""Homes and models to plan for: values built in one line."""

from __future__ import annotations

import hashlib
from itertools import combinations, permutations

from mesh.ids import Epoch, ModelId, PeerId, PlanId
from planner.plan import Capacity, Job, Plan, Prediction, Share, Span, Stage
from planner.profile import (
    Cluster,
    Curve,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
)

MB = 1_000_000
NAMES = ("laptop", "desktop", "pi", "tablet", "phone", "tv", "nas", "console")
EPOCH = Epoch(1, PeerId("e" * 64))
PLAN = PlanId("b" * 32)


def peer(number: int) -> PeerId:
    """Ids that sort in the order of their numbers."""
    return PeerId(f"{number:04x}" + hashlib.sha256(b"%d" % number).hexdigest()[4:])


def device(
    number: int,
    memory_bytes: int = 1000 * MB,
    layer_s: float = 1e-3,
    head_s: float = 5e-3,
    scratch_bytes: int = 0,
) -> DeviceProfile:
    """A device that takes 40 times as long for 512 tokens as for one."""
    curve = Curve(((1, layer_s), (512, 40 * layer_s)))
    name = NAMES[number % len(NAMES)]
    return DeviceProfile(peer(number), name, memory_bytes, curve, head_s, scratch_bytes)


def lan(
    *devices: DeviceProfile, round_trip_s: float = 2e-3, bytes_per_s: float = 12.5e6
) -> Cluster:
    """Everybody reaches everybody alike."""
    links = [
        LinkProfile(source.device, target.device, round_trip_s, bytes_per_s)
        for source, target in permutations(devices, 2)
    ]
    return Cluster(devices, tuple(links))


def model(
    layers: int = 6,
    weight_bytes: int = 10 * MB,
    head_bytes: int = 20 * MB,
    kv_bytes: int = 1000,
    window: int | None = None,
    context: int = 8192,
) -> ModelProfile:
    layer = LayerProfile(weight_bytes, kv_bytes, window)
    return ModelProfile(ModelId("a" * 64), "toy", (layer,) * layers, head_bytes, 640, 1000, context)


def gemma() -> ModelProfile:
    """Gemma 3 270M, held as fp32: five layers with a window, then one without."""
    layers = tuple(
        LayerProfile(22_300_000, 2048, None if index % 6 == 5 else 512) for index in range(18)
    )
    return ModelProfile(ModelId("c" * 64), "gemma-3-270m", layers, 671 * MB, 640, 262_144, 32_768)


def pipeline(*parts: tuple[DeviceProfile, int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(Span(first, last), (Share(one.device),)) for one, first, last in parts)


def plan(of: ModelProfile, *parts: tuple[DeviceProfile, int, int]) -> Plan:
    """A running plan; nobody looks at its prediction."""
    predicted = Prediction(0.0, 0.0, 0, ())
    stages = pipeline(*parts)
    return Plan(EPOCH, PLAN, of.model, of.name, Job.RUN, stages, Capacity(1, 1), "", predicted)


def all_placements(cluster: Cluster, layers: int) -> list[tuple[Stage, ...]]:
    """Every order of every set of devices, with every way to cut."""
    return [
        pipeline(*zip(order, marks[:-1], marks[1:], strict=True))
        for size in range(1, len(cluster.devices) + 1)
        for order in permutations(cluster.devices, size)
        for cuts in combinations(range(1, layers), size - 1)
        for marks in [(0, *cuts, layers)]
    ]
