"""Replanning: when a plan must be made anew, and what leaving the running one costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mesh.ids import Epoch, PeerId
from planner.memory import NOTHING, head_bytes, head_rows, is_part, part_bytes, spans_of
from planner.plan import Plan, Share, Span, Stage
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


def moved_bytes(
    old: Plan, stages: tuple[Stage, ...], model: ModelProfile, head: tuple[Share, ...] = ()
) -> int:
    """Bytes that all devices together must load for `stages` and `head` and did not hold in `old`.

    Of a layer that is cut in another way than before, a device loads the heads and columns, or the
    rows of the vocabulary, that it lacks.
    """
    layers = sum(
        _lacking(old, share, index, model)
        for stage in stages
        for share in stage.shares
        for index in range(stage.layers.first, stage.layers.last)
    )
    ends = stages[-1].layers.last == len(model.layers)
    rows = head_rows(model, stages[-1], head) if ends else []
    return layers + sum(_head_lacking(old, device, span, model) for device, span in rows)


def stage_moved_bytes(old: Plan, device: PeerId, layers: Span, model: ModelProfile) -> int:
    """Bytes of whole layers, and of the head if they end the model, that `device` did not hold in
    `old`.
    """
    missing = sum(
        _lacking(old, Share(device), index, model) for index in range(layers.first, layers.last)
    )
    # Of no layers behind the last one the head is all there is.
    needs_head = layers.last == len(model.layers)
    return missing + (_head_lacking(old, device, None, model) if needs_head else 0)


def _lacking(old: Plan, share: Share, index: int, model: ModelProfile) -> int:
    """Bytes of a share of one layer that its device did not hold."""
    held = _held_share(old, share.device, index)
    needed = part_bytes(model, index, share)
    if held is None:
        return needed
    cut = model.cut_of(index)
    if cut is None or not (is_part(share) or is_part(held)):
        return 0
    new, before = spans_of(model, index, share), spans_of(model, index, held)
    common = [_common(one, other) for one, other in zip(new, before, strict=True)]
    if not all(len(span) for span in common):
        return needed
    return max(0, needed - min(needed, cut.share_bytes(common[0], common[1])))


def _head_lacking(old: Plan, device: PeerId, rows: Span | None, model: ModelProfile) -> int:
    """Bytes of the vocabulary's rows that the device did not hold; `rows` None: all of them."""
    every = Span(0, model.vocabulary)
    rows = every if rows is None else rows
    for holder, held in head_rows(model, old.stages[-1], old.head):
        if holder == device:
            kept = len(_common(rows, every if held is None else held))
            return head_bytes(model, rows) * (len(rows) - kept) // max(1, len(rows))
    return head_bytes(model, None if rows == every else rows)


def _held_share(old: Plan, device: PeerId, index: int) -> Share | None:
    for stage in old.stages:
        if index in stage.layers:
            for share in stage.shares:
                if share.device == device:
                    return share
    return None


def _common(one: Span, other: Span) -> Span:
    first, last = max(one.first, other.first), min(one.last, other.last)
    return Span(first, last) if first < last else NOTHING
