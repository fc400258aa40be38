"""Numbers as people read them, for reasons and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.ids import PeerId
from planner.cost import predict, profiles
from planner.plan import Capacity, Stage
from planner.profile import Cluster, ModelProfile

MB = 1_000_000
MAX_NAMED = 3  # devices whose shortage is told one by one


def size_text(size_bytes: int) -> str:
    """Such as 1.28 GB, 720 MB, 4 kB; decimal units, as memory is sold and given to us."""
    for unit_bytes, unit in ((1e9, "GB"), (1e6, "MB")):
        if size_bytes >= 0.9995 * unit_bytes:
            amount = size_bytes / unit_bytes
            return f"{amount:.0f} {unit}" if amount >= 99.95 else f"{amount:.3g} {unit}"
    return f"{size_bytes / 1e3:.0f} kB"


def time_text(seconds: float) -> str:
    """Such as 1.24 s, 38.2 ms, 0.21 ms."""
    amount, unit = (seconds, "s") if seconds >= 0.9995 else (seconds * 1e3, "ms")
    return f"{amount:.0f} {unit}" if amount >= 99.95 else f"{amount:.3g} {unit}"


def conversations_text(capacity: Capacity) -> str:
    """Such as "4 conversations of 2048 tokens"."""
    plural = "s" if capacity.sessions > 1 else ""
    return f"{capacity.sessions} conversation{plural} of {capacity.context} tokens"


def held_text(held: Capacity, wanted: Capacity) -> str:
    """How much of `wanted` is held, such as "only 1 of the 4 conversations asked for"."""
    if held == wanted:
        return f"all {wanted.sessions} conversations" if wanted.sessions > 1 else "the conversation"
    if held.context == wanted.context:
        return f"only {held.sessions} of the {wanted.sessions} conversations asked for"
    return f"only {conversations_text(held)}, not the {conversations_text(wanted)} asked for"


def names_text(cluster: Cluster, devices: Iterable[PeerId]) -> str:
    """Such as "laptop, desktop and pi"."""
    return list_text([cluster.name_of(one) for one in devices])


def list_text(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def shortages(
    stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, capacity: Capacity
) -> dict[PeerId, int]:
    """Bytes that each device lacks for `capacity`; only those that lack any."""
    devices = profiles(cluster)
    needed = predict(stages, cluster, model, capacity).memory_bytes
    missing = {device: size - devices[device].memory_bytes for device, size in needed}
    return {device: size for device, size in missing.items() if size > 0}


def shortage_text(
    stages: tuple[Stage, ...], cluster: Cluster, model: ModelProfile, capacity: Capacity
) -> str:
    """Such as "needs 1.28 GB, the 3 allow 1.2 GB: short by 80 MB on laptop"."""
    devices = profiles(cluster)
    needed = sum(size for _, size in predict(stages, cluster, model, capacity).memory_bytes)
    allowed = sum(devices[stage.lead].memory_bytes for stage in stages)
    count = f"the {len(stages)} allow" if len(stages) > 1 else "it allows"
    short = lacking_text(shortages(stages, cluster, model, capacity), cluster)
    text = f"needs {size_text(needed)}, {count} {size_text(allowed)}: short by {short}"
    whole = ", for neither a layer nor the head can be divided" if needed <= allowed else ""
    return text + whole


def lacking_text(short: Mapping[PeerId, int], cluster: Cluster) -> str:
    """Such as "80 MB on laptop and 12 MB on pi": rounded up, to be typed after --memory."""
    devices = profiles(cluster)
    if len(short) > MAX_NAMED:
        total = sum(short.values())
        return f"{size_text(-(-total // MB) * MB)} on {len(short)} devices together"
    return list_text(
        [f"{size_text(-(-size // MB) * MB)} on {devices[one].name}" for one, size in short.items()]
    )
