"""Replanning: when a plan must be made anew, and what leaving the running one costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mesh.ids import Epoch, PeerId
from planner.plan import Plan, Span, Stage
from planner.profile import ModelProfile

# Reading from an SSD and unpacking to fp32 on a small board. A measured number may be passed.
LOAD_BYTES_PER_S = 200e6
# A move nobody is forced to make must repay its loading within so many requests (some minutes of
# talk); after a loss everybody waits for the load, so there it counts in full, against one.
REPAY_REQUESTS = 8
SWITCH_GAIN = 0.10  # of the request's time; below, measuring noise would move layers to and fro


@dataclass(frozen=True, slots=True)
class Move:
    """Leaving `old` for another placement: every byte that has to be loaded costs time."""

    old: Plan
    load_bytes_per_s: float
    requests: int  # over which the loading is spread

    @property
    def cost_s_per_byte(self) -> float:
        """What a byte to be loaded adds to the objective of a placement."""
        return 1 / (self.load_bytes_per_s * self.requests)

    def load_s(self, moved: int) -> float:
        """Seconds until `moved` bytes are loaded, one device after the other: the worst case."""
        return moved / self.load_bytes_per_s


def why_replan(
    plan: Plan,
    since: Epoch | None,
    present: frozenset[PeerId],
    considered: frozenset[PeerId],
    names: Mapping[PeerId, str] = MappingProxyType({}),
) -> str | None:
    """Why there should be another plan than the one in force; None when it is good.

    `since` is the first epoch of the leader's term, None while none has begun; `present` are the
    devices here now, `considered` those that were when we last planned.
    """
    lost = [names.get(one, one.short) for one in plan.devices if one not in present]
    if lost:
        return f"lost {', '.join(lost)}"
    if since is None or plan.epoch < since:
        # Nobody knows what its devices did under another leader: it is installed anew, unchanged.
        return f"the plan of epoch {plan.epoch} is another leader's"
    joined = sorted(names.get(one, one.short) for one in present - considered)
    return f"{', '.join(joined)} joined" if joined else None


def moved_bytes(old: Plan, stages: tuple[Stage, ...], model: ModelProfile) -> int:
    """Bytes that all devices together must load for `stages` and did not hold in `old`."""
    return sum(
        stage_moved_bytes(old, share.device, stage.layers, model)
        for stage in stages
        for share in stage.shares
    )


def stage_moved_bytes(old: Plan, device: PeerId, layers: Span, model: ModelProfile) -> int:
    """Bytes of layers, and of the head if the stage has it, that `device` did not hold in `old`."""
    held = old.layers_of(device) or Span(0, 0)
    last = len(model.layers)
    missing = sum(
        model.layers[index].weight_bytes
        for index in range(layers.first, layers.last)
        if index not in held
    )
    # Of an empty span `last` would be 0, which ends no model.
    needs_head = layers.last == last and held.last != last
    return missing + (model.head_bytes if needs_head else 0)
