"""Predicted against measured: what each device of a plan was expected to do, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.ids import PeerId
from planner.plan import Effort, Plan, StageForecast
from planner.request import PREFILL_TOKENS
from runtime.efforts import Measured, PlanEfforts


def compared(
    plan: Plan, told: Mapping[PeerId, PlanEfforts], names: Mapping[PeerId, str]
) -> dict[str, Any]:
    """A row for each share of a stage. `prefill` is of PREFILL_TOKENS tokens, `decode` of one; what
    was not measured yet, or does not happen with this model, is None.
    """
    rows = [_row(plan, one, told, names) for one in plan.predicted.forecasts]
    last = told.get(plan.stages[-1].lead)
    prompts, tokens = (last.prompts, last.tokens) if last else (None, None)
    return {
        "model": plan.model_name,
        "epoch": plan.epoch.counter,
        "plan_id": str(plan.plan_id),
        "prefill_tokens": PREFILL_TOKENS,
        "rows": rows,
        # From one turn to the next, as the device sees it from which the tokens come.
        "prefill": _whole(plan.predicted.prefill_s, prompts, PREFILL_TOKENS),
        "decode": _whole(plan.predicted.decode_s, tokens, 1),
    }


def measured_as_dict(one: PlanEfforts) -> dict[str, Any]:
    """What one device measured under one plan."""
    return {
        "plan_id": str(one.plan),
        "prefill": _measured(one.prompts, PREFILL_TOKENS),
        "decode": _measured(one.tokens, 1),
    }


def _row(
    plan: Plan,
    of: StageForecast,
    told: Mapping[PeerId, PlanEfforts],
    names: Mapping[PeerId, str],
) -> dict[str, Any]:
    stage = plan.stages[of.stage]
    layers, device = stage.layers, stage.shares[of.share].device
    efforts = told.get(device)
    return {
        "stage": of.stage,
        "layers": [layers.first, layers.last],
        "device": str(device),
        "name": names.get(device, device.short),
        "prefill": {
            "predicted": _predicted(of.prefill),
            "measured": _measured(efforts.prompts if efforts else None, PREFILL_TOKENS),
        },
        "decode": {
            "predicted": _predicted(of.decode) if plan.predicted.decode_s else None,
            "measured": _measured(efforts.tokens if efforts else None, 1),
        },
    }


def _predicted(effort: Effort) -> dict[str, float]:
    return {
        "compute_ms": effort.compute_s * 1e3,
        "wire_ms": effort.wire_s * 1e3,
        "wait_ms": effort.wait_s * 1e3,
    }


def _measured(one: Measured | None, passes: int) -> dict[str, float] | None:
    if one is None:
        return None
    return {
        "compute_ms": passes * one.compute_s * 1e3,
        "wire_ms": passes * one.wire_s * 1e3,
        "wait_ms": passes * one.wait_s * 1e3,
        # Of one token, also of a prompt.
        "sent_kb": one.sent_bytes / 1e3,
        "received_kb": one.received_bytes / 1e3,
        "turns": one.turns,
        "rows": one.rows,
        "conversations": one.conversations,
    }


def _whole(predicted_s: float, one: Measured | None, passes: int) -> dict[str, float | None] | None:
    if not predicted_s:
        return None
    measured_ms = passes * (one.compute_s + one.wait_s) * 1e3 if one else None
    return {"predicted_ms": predicted_s * 1e3, "measured_ms": measured_ms}
