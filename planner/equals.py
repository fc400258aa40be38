"""Devices of one kind, which a home often has: measured one by one they seem to differ a little.

A plan by such differences gives each another share, and another one after the next measurement. So
devices that differ by no more than measuring does are one kind, and each gets the mean of all.
Those with the same processor are presumed to be one, and may have been measured in worse moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median

from planner.profile import Cluster, Curve, DeviceProfile, PartCurves, ShareCurves, WireCost

# On a quarter of a core two measurements of one device differed by up to 9 %. Who is slower by
# this, and gets as much as the others, costs a pass half of it.
NOISE = 0.10
# Now and then one of four equal devices seemed a fifth faster or slower than the others.
SAME_NOISE = 0.22


def evened(cluster: Cluster) -> Cluster:
    """The same devices; those of one kind with the same figures, but for their memory."""
    devices = {one.device: one for one in cluster.devices}
    for kind in _kinds(cluster.devices):
        devices.update((one.device, one) for one in _mean(kind))
    return replace(cluster, devices=tuple(devices[one.device] for one in cluster.devices))


def _kinds(devices: Sequence[DeviceProfile]) -> list[list[DeviceProfile]]:
    """Who has the same processor and is near to the middle of all who have; of the others, from the
    fastest on, who is near to the first of a kind.
    """
    ordered = sorted(devices, key=lambda one: (one.layer.points[-1][1], one.device))
    found = _same(ordered)
    known = {one.device for kind in found for one in kind}
    for one in ordered:
        if one.device in known:
            continue
        for kind in found:
            if _is_near(kind[0], one, NOISE):
                kind.append(one)
                break
        else:
            found.append([one])
    return found


def _same(ordered: Sequence[DeviceProfile]) -> list[list[DeviceProfile]]:
    """Of each processor that several have, those near to the middle one, which comes first here."""
    found = []
    for processor in dict.fromkeys(one.processor for one in ordered if one.processor):
        those = [one for one in ordered if one.processor == processor]
        middle = those[(len(those) - 1) // 2]
        others = [one for one in those if one is not middle and _is_near(middle, one, SAME_NOISE)]
        if others:
            found.append([middle, *others])
    return found


def _is_near(one: DeviceProfile, other: DeviceProfile, noise: float) -> bool:
    if _shape(one) != _shape(other):
        return False
    pairs = zip(one.layer.points, other.layer.points, strict=True)
    times = median(b / max(a, 1e-12) for (_, a), (_, b) in pairs)
    return abs(times - 1) <= noise


def _shape(one: DeviceProfile) -> object:
    """What has to be the same for a mean to make sense."""
    counts = tuple(count for count, _ in one.layer.points)
    own_core = one.wire and one.wire.own_core
    if one.parts is None:
        return counts, own_core, None
    shares = (one.parts.whole, one.parts.small)
    curves = [curve for share in shares for curve in _curves(share)] + [one.parts.connect]
    rows = tuple(tuple(count for count, _ in curve.points) for curve in curves)
    return counts, own_core, rows, tuple((share.heads, share.columns) for share in shares)


def _curves(share: ShareCurves) -> list[Curve]:
    return [share.project, share.attend, share.close, share.mlp]


def _mean(kind: Sequence[DeviceProfile]) -> list[DeviceProfile]:
    if len(kind) == 1:
        return list(kind)
    layer = _curve([one.layer for one in kind])
    head_s = fmean(one.head_s for one in kind)
    known = [one.parts for one in kind if one.parts is not None]
    wires = [one.wire for one in kind if one.wire is not None]
    parts = _parts(known) if known else None
    wire = _wire(wires) if wires else None
    return [replace(one, layer=layer, head_s=head_s, parts=parts, wire=wire) for one in kind]


def _parts(all_parts: Sequence[PartCurves]) -> PartCurves:
    return PartCurves(
        whole=_share([one.whole for one in all_parts]),
        small=_share([one.small for one in all_parts]),
        connect=_curve([one.connect for one in all_parts]),
        add_s=fmean(one.add_s for one in all_parts),
        fp16_s=fmean(one.fp16_s for one in all_parts),
        int8_s=fmean(one.int8_s for one in all_parts),
    )


def _share(shares: Sequence[ShareCurves]) -> ShareCurves:
    def curve(of: Callable[[ShareCurves], Curve]) -> Curve:
        return _curve([of(one) for one in shares])

    return ShareCurves(
        shares[0].heads,
        shares[0].columns,
        project=curve(lambda one: one.project),
        attend=curve(lambda one: one.attend),
        close=curve(lambda one: one.close),
        mlp=curve(lambda one: one.mlp),
    )


def _curve(curves: Sequence[Curve]) -> Curve:
    rows = zip(*(one.points for one in curves), strict=True)
    return Curve(tuple((points[0][0], fmean(seconds for _, seconds in points)) for points in rows))


def _wire(wires: Sequence[WireCost]) -> WireCost:
    return WireCost(
        send_s_per_byte=fmean(one.send_s_per_byte for one in wires),
        send_s_per_frame=fmean(one.send_s_per_frame for one in wires),
        receive_s_per_byte=fmean(one.receive_s_per_byte for one in wires),
        receive_s_per_frame=fmean(one.receive_s_per_frame for one in wires),
        own_core=wires[0].own_core,
    )
