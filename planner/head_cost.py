"""The vocabulary's rows over several devices: what a token then takes, and how they are best cut.

The lead of the last stage sends the final row to the others; each answers with its best candidates.
So every other device costs a round trip, beside which its rows are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from mesh.ids import PeerId
from planner.counting import spans, whole_numbers
from planner.lanes import HANDOFF_S, TYPICAL_WIRE
from planner.network import FRAME_OVERHEAD_BYTES, Links, hop_s, rows_bytes
from planner.plan import Share
from planner.profile import DeviceProfile, ModelProfile

DEVICE_GAIN = 0.03  # of the head's time: for less, no further device is asked at every token
ANSWER_BYTES = 2048 + FRAME_OVERHEAD_BYTES  # candidates with their logits


def head_s(
    head: Sequence[Share],
    lead: PeerId,
    devices: dict[PeerId, DeviceProfile],
    links: Links,
    model: ModelProfile,
) -> float:
    """Norm, vocabulary and sampling for one token: the slowest part, its way there and back."""
    if not head:
        return devices[lead].head_s
    return max(
        head_part_s(share, devices[share.device], model)
        + round_trip_s(lead, share.device, devices, links, model)
        for share in head
    )


def head_part_s(share: Share, device: DeviceProfile, model: ModelProfile) -> float:
    """What a device computes for its rows of the vocabulary."""
    rows = 0 if share.vocab is None else len(share.vocab)
    return device.head_s * rows / max(1, model.vocabulary)


def head_wire_bytes(head: Sequence[Share], lead: PeerId, model: ModelProfile) -> int:
    """What goes to and fro for a token."""
    others = sum(share.device != lead for share in head)
    return others * (rows_bytes(1, model.hidden_size) + ANSWER_BYTES)


def round_trip_s(
    lead: PeerId,
    device: PeerId,
    devices: dict[PeerId, DeviceProfile],
    links: Links,
    model: ModelProfile,
) -> float:
    """A row there, the candidates back, and what both take of the processors."""
    if lead == device:
        return 0.0
    there, back = rows_bytes(1, model.hidden_size), ANSWER_BYTES
    costs = [devices[one].wire or TYPICAL_WIRE for one in (lead, device)]
    handled_s = sum(cost.send_s_per_frame + cost.receive_s_per_frame for cost in costs)
    way_s = hop_s(links, lead, device, there) + hop_s(links, device, lead, back)
    return way_s + handled_s + 2 * HANDOFF_S


def cut_head(
    lead: PeerId,
    others: Sequence[PeerId],
    devices: dict[PeerId, DeviceProfile],
    links: Links,
    model: ModelProfile,
    room_bytes: dict[PeerId, int],
) -> tuple[Share, ...]:
    """The rows over the lead and those of the others that make it faster; () where none does, or
    where `room_bytes` has no room for all rows.

    All are done at one time t: sum over devices of (t - round trip) / head_s = 1.
    """
    fixed = {one: round_trip_s(lead, one, devices, links, model) for one in (lead, *others)}
    able = [one for one in (lead, *others) if fixed[one] < inf and devices[one].head_s > 0]
    caps = {one: min(1.0, room_bytes[one] / max(1, model.head_bytes)) for one in able}
    parts = _parts({one: fixed[one] for one in able}, devices, caps)
    taken = [one for one in able if parts.get(one, 0.0) > 0]
    if lead not in taken or len(taken) < 2:
        return ()
    counts = whole_numbers(
        model.vocabulary,
        [parts[one] for one in taken],
        [int(caps[one] * model.vocabulary) for one in taken],
    )
    if counts is None:
        return ()
    pairs = zip(taken, spans(counts), strict=True)
    return tuple(Share(device, vocab=span) for device, span in pairs)


def _parts(
    fixed: dict[PeerId, float],
    devices: dict[PeerId, DeviceProfile],
    caps: dict[PeerId, float],
) -> dict[PeerId, float]:
    """The fraction of the rows for each device: those that are nearest first, as many as help, and
    none above its cap.
    """
    nearest = sorted(fixed, key=lambda one: (fixed[one], one))
    best: dict[PeerId, float] = {}
    best_s = inf
    for count in range(1, len(nearest) + 1):
        parts = _level(nearest[:count], fixed, devices, caps)
        if parts is None:
            continue
        slowest_s = max(fixed[one] + parts[one] * devices[one].head_s for one in parts)
        if slowest_s < best_s * (1 - DEVICE_GAIN):
            best, best_s = parts, slowest_s
    return best


def _level(
    chosen: list[PeerId],
    fixed: dict[PeerId, float],
    devices: dict[PeerId, DeviceProfile],
    caps: dict[PeerId, float],
) -> dict[PeerId, float] | None:
    """Fractions with which all that are not at their cap are done at one time."""
    parts: dict[PeerId, float] = {}
    free, left = list(chosen), 1.0
    while free:
        speed = sum(1 / devices[one].head_s for one in free)
        done_s = (left + sum(fixed[one] / devices[one].head_s for one in free)) / speed
        level = {one: (done_s - fixed[one]) / devices[one].head_s for one in free}
        over = [one for one in free if level[one] > caps[one]]
        if not over:
            if min(level.values()) <= 0:
                return None
            return parts | level
        for one in over:
            parts[one] = caps[one]
            left -= caps[one]
            free.remove(one)
    return None if left > 1e-9 else parts
