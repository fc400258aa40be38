"""Whether measured numbers can be: they come from another device."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from planner.profile import Curve, Cuttable, DeviceProfile, ModelProfile, PartCurves, WireCost


def is_sound(device: DeviceProfile) -> bool:
    """Whether a search can count with the device's profile."""
    return (
        _is_curve(device.layer)
        and _are_seconds(device.head_s)
        and device.scratch_bytes >= 0
        and (device.parts is None or _are_parts(device.parts))
        and (device.wire is None or _is_wire(device.wire))
    )


def sound_model(model: ModelProfile) -> ModelProfile:
    """The same; without the cuts of its layers where one of them cannot be."""
    known = all(0 <= layer.cut < len(model.cuts) for layer in model.layers)
    if not model.cuts or (known and all(map(_is_cut, model.cuts))):
        return model
    return replace(model, cuts=())


def _is_curve(curve: Curve) -> bool:
    """Ascending, and at least one point."""
    counts = [count for count, _ in curve.points]
    is_ascending = counts == sorted(set(counts)) and counts[:1] > [0]
    return is_ascending and _are_seconds(*(seconds for _, seconds in curve.points))


def _are_parts(parts: PartCurves) -> bool:
    whole, small = parts.whole, parts.small
    curves = [
        curve for one in (whole, small) for curve in (one.project, one.attend, one.close, one.mlp)
    ]
    return (
        all(map(_is_curve, [*curves, parts.connect]))
        and 1 <= small.heads <= whole.heads
        and 1 <= small.columns <= whole.columns
        and _are_seconds(parts.add_s, parts.fp16_s, parts.int8_s)
    )


def _is_wire(wire: WireCost) -> bool:
    return _are_seconds(
        wire.send_s_per_byte,
        wire.send_s_per_frame,
        wire.receive_s_per_byte,
        wire.receive_s_per_frame,
    )


def _are_seconds(*numbers: float) -> bool:
    return all(isfinite(number) and number >= 0 for number in numbers)


def _is_cut(cut: Cuttable) -> bool:
    counts = (cut.heads, cut.kv_heads, cut.head_dim, cut.columns, cut.output_unit, cut.column_unit)
    sizes = (cut.query_bytes, cut.kv_bytes, cut.output_bytes, cut.column_bytes, cut.down_bytes)
    return (
        min(counts) > 0
        and cut.heads % cut.kv_heads == 0
        and min(*sizes, cut.rest_bytes) >= 0
        and cut.heads * cut.head_dim <= 1 << 20
        and cut.columns <= 1 << 24
    )
