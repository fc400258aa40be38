"""What the planner would do in an emulated home, by what its devices measure of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

from apps.bench.home import Device
from apps.bench.passes import Model
from mesh.codec import from_plain
from mesh.ids import Epoch, PlanId
from planner.allowed import EVERYTHING, Allowed, wires_to
from planner.choose import Choice, choose
from planner.cost import predict
from planner.plan import Capacity, Prediction, Stage, Wire
from planner.profile import Cluster, DeviceProfile, LinkProfile
from planner.request import Request
from planner.shape_text import shape_text
from planner.words import lacking_text, shortages

NO_LIMIT_BYTES: Final = 1 << 40  # where a home has no memory limits
RPC_RIVAL: Final = "llama.cpp over RPC: its ready wheel has no rpc-server"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the planner is asked for."""

    request: Request
    wire: Wire  # the narrowest that it may take

    @property
    def allowed(self) -> Allowed:
        return replace(EVERYTHING, wires=wires_to(self.wire))


async def surveyed(
    devices: Sequence[Device], model: Model, memory_bytes: Sequence[int] = ()
) -> Cluster:
    """One device after the other, as a mesh does it, each as fast as it is in this home. Raises
    DeviceFailed.
    """
    limits = [*memory_bytes, *[NO_LIMIT_BYTES] * (len(devices) - len(memory_bytes))]
    told = [
        await device.ask(
            "profile",
            name=device.name,
            path=str(model.path),
            precision=model.precision.value,
            memory_bytes=most_bytes,
        )
        for device, most_bytes in zip(devices, limits, strict=True)
    ]
    profiles = tuple(from_plain(DeviceProfile, one["profile"]) for one in told)
    links = tuple(from_plain(LinkProfile, link) for one in told for link in one["links"])
    return Cluster(profiles, links)


def chosen(cluster: Cluster, model: Model, wanted: Wanted) -> Choice:
    """Raises DoesNotFit."""
    first = cluster.devices[0].device
    return choose(
        cluster,
        model.profile,
        Capacity(1, model.context),
        Epoch(1, first),
        PlanId.new(),
        allowed=wanted.allowed,
        request=wanted.request,
    )


def expected(
    choice: Choice, model: Model, stages: tuple[Stage, ...], request: Request
) -> Prediction | None:
    """What the planner says of a plan that it did not choose; None where it says nothing."""
    found = predict(stages, choice.cluster, model.profile, choice.plan.capacity, request=request)
    return found if isfinite(found.prefill_s) else None


def why_impossible(choice: Choice, model: Model, stages: tuple[Stage, ...]) -> str:
    """Which memory is short for a plan that the planner did not choose; "" where it fits."""
    short = shortages(stages, choice.cluster, model.profile, choice.plan.capacity)
    return f"impossible: short by {lacking_text(short, choice.cluster)}" if short else ""


def in_words(choice: Choice) -> str:
    """Such as "heads and columns over device 0 and device 1, 8 + 8 heads, fp16 on the wire"."""
    return shape_text(choice.plan.stages, choice.plan.head, choice.cluster)
