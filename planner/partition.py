"""The partition: for every set of devices the best order and the best cuts, exactly.

Dynamic programming over (devices used, first device, last device, layers done). EdgeShard's
formulation keeps the used set too; the first device is kept as well, because the token returns to
it. Each device appears in one stage only, so checking memory stage by stage is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mesh.ids import PeerId
from planner.memory import layer_bytes
from planner.network import hidden_bytes, hop_s, links_of, return_s
from planner.plan import Capacity, Share, Span, Stage
from planner.profile import Cluster, DeviceProfile, ModelProfile
from planner.replan import Move, stage_moved_bytes
from planner.request import Request, request_of

Floats = npt.NDArray[np.float64]
Subset = frozenset[PeerId]
Placements = dict[Subset, tuple[Stage, ...]]

# Added per stage, times the square of the used part of its memory: of cuts that are equally fast
# the one that fills the devices evenly wins, and no other choice is ever swayed by a microsecond.
EVEN_FILL_S = 1e-6


def fastest_placements(
    cluster: Cluster,
    model: ModelProfile,
    capacity: Capacity,
    move: Move | None = None,
    request: Request | None = None,
) -> Placements:
    """The stages with the least objective for each set of devices that holds `capacity`.

    Every device of a set gets at least one layer. With `move`, the time to load what the running
    plan does not hold is part of the objective.
    """
    request = request or request_of(model)
    devices = _ordered(cluster)
    used_bytes = _memory_bytes(devices, model, capacity)
    limit_bytes = _limits(devices)
    stage_s = (
        _stage_s(devices, model, request)
        + EVEN_FILL_S * (used_bytes / np.maximum(limit_bytes, 1)) ** 2
    )
    if move is not None:
        stage_s += move.cost_s_per_byte * _moved_bytes(devices, model, move)
    stage_s[used_bytes > limit_bytes] = np.inf
    hop, back = _hop_s(devices, cluster, model, request)
    return _stages(devices, _Sums(stage_s, hop, back))


def nearest_placements(cluster: Cluster, model: ModelProfile, capacity: Capacity) -> Placements:
    """The stages with the fewest bytes beyond the memory limits, for each set of devices.

    A set is missing only where a link is, or where it has more devices than the model layers.
    """
    devices = _ordered(cluster)
    excess_bytes = np.maximum(_memory_bytes(devices, model, capacity) - _limits(devices), 0.0)
    hop, back = _hop_s(devices, cluster, model, request_of(model))
    free_hop, free_back = (np.where(seconds < np.inf, 0.0, np.inf) for seconds in (hop, back))
    return _stages(devices, _Sums(excess_bytes, free_hop, free_back))


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a placement adds up to: its stages, its hops, and the way back. inf: impossible."""

    stage: Floats  # [D, L + 1, L + 1] device d with layers [i, j)
    hop: Floats  # [D, D] source, target
    back: Floats  # [D, D] last, first


# --- the terms -----------------------------------------------------------------------------------


def _ordered(cluster: Cluster) -> list[DeviceProfile]:
    """By id, so that the answer does not depend on who was asked first."""
    return sorted(cluster.devices, key=lambda device: device.device)


def _limits(devices: list[DeviceProfile]) -> Floats:
    limits = [device.memory_bytes for device in devices]
    return np.array(limits, dtype=np.float64)[:, None, None]  # [D, 1, 1]


def _memory_bytes(devices: list[DeviceProfile], model: ModelProfile, capacity: Capacity) -> Floats:
    """[D, L + 1, L + 1]; whole numbers, exact in a float up to 9 PB."""
    sums = np.cumsum([0, *(layer_bytes(layer, capacity) for layer in model.layers)])
    held = (sums[None, :] - sums[:, None]).astype(np.float64)  # [L + 1, L + 1]
    held[:, -1] += model.head_bytes
    scratch = np.array([device.scratch_bytes for device in devices], dtype=np.float64)
    total: Floats = held[None] + scratch[:, None, None]
    return total


def _stage_s(devices: list[DeviceProfile], model: ModelProfile, request: Request) -> Floats:
    """[D, L + 1, L + 1] compute of the whole request."""
    layer = [request.seconds(one.layer.at(request.prompt), one.layer.at(1)) for one in devices]
    head = [request.seconds(one.head_s, one.head_s) for one in devices]
    marks = np.arange(len(model.layers) + 1)
    counts = marks[None, :] - marks[:, None]  # [L + 1, L + 1]
    seconds: Floats = np.array(layer)[:, None, None] * counts[None]
    seconds[:, :, -1] += np.array(head)[:, None]
    return seconds


def _moved_bytes(devices: list[DeviceProfile], model: ModelProfile, move: Move) -> Floats:
    """[D, L + 1, L + 1] what a device must load for layers [i, j)."""
    last = len(model.layers)
    moved = np.zeros((len(devices), last + 1, last + 1))
    for d, device in enumerate(devices):
        one = [
            stage_moved_bytes(move.old, device.device, Span(i, i + 1), model) for i in range(last)
        ]
        head_bytes = stage_moved_bytes(move.old, device.device, Span(last, last), model)
        sums = np.cumsum([0, *one[:-1], one[-1] - head_bytes]).astype(np.float64)
        moved[d] = sums[None, :] - sums[:, None]
        moved[d, :, -1] += head_bytes
    return moved


def _hop_s(
    devices: list[DeviceProfile], cluster: Cluster, model: ModelProfile, request: Request
) -> tuple[Floats, Floats]:
    """[D, D] forward hops of the whole request, and [D, D] its tokens' ways back."""
    links = links_of(cluster)
    prefill_bytes, decode_bytes = hidden_bytes(model, request.prompt), hidden_bytes(model, 1)

    def hop(source: PeerId, target: PeerId) -> float:
        return request.seconds(
            hop_s(links, source, target, prefill_bytes), hop_s(links, source, target, decode_bytes)
        )

    def back(last: PeerId, first: PeerId) -> float:
        return request.seconds(return_s(links, last, first), return_s(links, last, first))

    ids = [device.device for device in devices]
    return (
        np.array([[hop(source, target) for target in ids] for source in ids]),
        np.array([[back(last, first) for first in ids] for last in ids]),
    )


# --- the search ----------------------------------------------------------------------------------


def _stages(devices: list[DeviceProfile], sums: _Sums) -> Placements:
    """The best stages of every set that has any; the answer of the dynamic programme."""
    if not devices:
        return {}
    best = _best(sums)
    found: Placements = {}
    for used in range(1, len(best)):
        total = best[used, :, :, -1] + sums.back.T  # [first, last]
        first, last = divmod(int(total.argmin()), len(devices))
        if total[first, last] < np.inf:
            cuts = _walk_back(best, sums, used, first, last)
            stages = tuple(
                Stage(Span(i, j), (Share(devices[device].device),)) for device, i, j in cuts
            )
            found[frozenset(stage.lead for stage in stages)] = stages
    return found


def _best(sums: _Sums) -> Floats:
    """[2^D, first, last, layers done]: the least sum of stages so far, over all that get there."""
    count, ends, _ = sums.stage.shape
    best = np.full((1 << count, count, count, ends), np.inf)
    for device in range(count):
        best[1 << device, device, device, 1:] = sums.stage[device, 0, 1:]
    masks = np.arange(1 << count)
    sizes = np.array([mask.bit_count() for mask in range(1 << count)])
    for size in range(1, count):
        for device in range(count):
            used = masks[(sizes == size) & (masks >> device & 1 == 0)]  # [N]
            hop = sums.hop[:, device, None]  # [last, 1]
            arrived = (best[used] + hop).min(axis=2)  # [N, first, layers done]
            then = np.full_like(arrived, np.inf)
            for i in range(1, ends - 1):
                longer = arrived[:, :, i, None] + sums.stage[device, i, i + 1 :]
                np.minimum(then[:, :, i + 1 :], longer, out=then[:, :, i + 1 :])
            best[used | 1 << device, :, device] = then
    return best


def _walk_back(
    best: Floats, sums: _Sums, used: int, first: int, last: int
) -> list[tuple[int, int, int]]:
    """The (device, first layer, last layer) that make up an entry of `best`, in order."""
    end = best.shape[-1] - 1
    cuts: list[tuple[int, int, int]] = []
    while used != 1 << last:
        used ^= 1 << last
        come = best[used, first, :, :end] + sums.hop[:, last, None]  # [device before, layers done]
        before, start = divmod(int((come + sums.stage[last, :end, end]).argmin()), end)
        cuts.append((last, start, end))
        last, end = before, start
    cuts.append((last, 0, end))
    return cuts[::-1]
