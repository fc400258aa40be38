"""Homes and models to plan for: values built in one line."""

from __future__ import annotations

import hashlib
from itertools import combinations, permutations

from mesh.ids import Epoch, ModelId, PeerId, PlanId
from planner.plan import Capacity, Job, Plan, Prediction, Share, Span, Stage
from planner.profile import (
    Cluster,
    Curve,
    Cuttable,
    DeviceProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
    PartCurves,
    ShareCurves,
    Stacks,
    WireCost,
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
    *devices: DeviceProfile,
    round_trip_s: float = 2e-3,
    bytes_per_s: float = 12.5e6,
    burst_bytes: float = 0.0,
) -> Cluster:
    """Everybody reaches everybody alike."""
    links = [
        LinkProfile(source.device, target.device, round_trip_s, bytes_per_s, burst_bytes)
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


# --- devices that share layers -------------------------------------------------------------------

HEADS, COLUMNS, HIDDEN = 16, 4096, 1024
COUNTS = (1, 16, 64, 256, 512)


def bert(
    layers: int = 24, stacks: Stacks = Stacks.ENCODER, head_bytes: int = MB, kv_bytes: int = 8192
) -> ModelProfile:
    """As large as BERT's large one, held as fp32: 50 MB a layer."""
    map_bytes = 4 * HIDDEN
    cut = Cuttable(
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=64,
        columns=COLUMNS,
        output_unit=32,
        column_unit=32,
        query_bytes=64 * map_bytes,
        kv_bytes=2 * 64 * map_bytes,
        output_bytes=32 * map_bytes,
        column_bytes=map_bytes,
        down_bytes=32 * map_bytes,
        rest_bytes=4 * map_bytes,
    )
    each = (LayerProfile(cut.whole_bytes, kv_bytes, None),) * layers
    of = ModelId("d" * 64)
    return ModelProfile(of, "bert", each, head_bytes, HIDDEN, 30_000, 8192, (cut,), stacks)


def board(
    number: int,
    core: float = 0.25,
    memory_bytes: int = 4000 * MB,
    head_s: float = 2e-3,
    *,
    own_core: bool = False,
) -> DeviceProfile:
    """A device with a part of a server's core: a whole one takes 170 ms for a layer of `bert` with
    512 rows. A call has a price of its own, so few rows and small shares are dearer than their
    part of the work.
    """
    call_s, full_s = 30e-6 / core, 0.17 / core

    def curve(of_layer: float, grows: float = 0.0) -> Curve:
        """So much of a layer's time; a part `grows` of it goes with the square of the rows."""
        return Curve(
            tuple(
                (
                    n,
                    call_s
                    + full_s * of_layer * ((n + 5) / 517 * (1 - grows) + grows * (n / 512) ** 2),
                )
                for n in COUNTS
            )
        )

    def share(part: int) -> ShareCurves:
        return ShareCurves(
            HEADS // part,
            COLUMNS // part,
            project=curve(0.225 / part),
            attend=curve(0.08 / part, grows=0.8),
            close=curve(0.075 / part),
            mlp=curve(0.6 / part),
        )

    whole, connect = share(1), curve(0.02)
    curves = (whole.project, whole.attend, whole.close, whole.mlp, connect)
    layer = Curve(tuple((n, sum(one.at(n) for one in curves)) for n in COUNTS))
    parts = PartCurves(whole, share(4), connect, 0.3e-9 / core, 1.2e-9 / core, 4e-9 / core)
    wire = WireCost(1e-9 / core, 60e-6 / core, 1.2e-9 / core, 60e-6 / core, own_core)
    name = NAMES[number % len(NAMES)]
    return DeviceProfile(peer(number), name, memory_bytes, layer, head_s / core, 0, parts, wire)


def measured_board(number: int) -> DeviceProfile:
    """What a quarter of a server's core measured of itself and a layer of `bert`, on 2026-11-22."""

    def curve(*milliseconds: float) -> Curve:
        return Curve(tuple((n, ms / 1e3) for n, ms in zip(COUNTS, milliseconds, strict=True)))

    whole = ShareCurves(
        HEADS,
        COLUMNS,
        project=curve(4.10, 13.16, 19.27, 51.69, 96.61),
        attend=curve(0.59, 1.34, 2.44, 15.46, 55.70),
        close=curve(1.73, 3.70, 6.45, 17.12, 33.37),
        mlp=curve(10.14, 29.12, 49.34, 135.96, 259.71),
    )
    small = ShareCurves(
        HEADS // 4,
        COLUMNS // 4,
        project=curve(0.86, 2.78, 5.05, 12.93, 23.65),
        attend=curve(0.33, 0.63, 1.18, 3.73, 11.40),
        close=curve(0.42, 1.14, 2.06, 5.43, 9.46),
        mlp=curve(1.96, 6.55, 12.60, 34.82, 67.80),
    )
    connect = curve(1.11, 1.61, 2.61, 5.02, 8.77)
    parts = PartCurves(whole, small, connect, add_s=8.2e-10, fp16_s=1.29e-8, int8_s=7e-9)
    wire = WireCost(8.8e-9, 504e-6, 10.6e-9, 504e-6, own_core=False)
    layer = curve(17.67, 48.93, 80.11, 225.25, 454.15)
    name = NAMES[number % len(NAMES)]
    return DeviceProfile(peer(number), name, 4000 * MB, layer, 8e-3, 0, parts, wire)


def at_mbit(mbit: float, *devices: DeviceProfile) -> Cluster:
    """Everybody on one switch, at so many Mbit/s."""
    return lan(*devices, round_trip_s=0.4e-3, bytes_per_s=mbit * 1e6 / 8 * 0.95)


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
