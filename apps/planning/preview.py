"""A planning decision as plain data: what `potluck plan` and the API show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil, floor
from typing import Any, Final

from mesh.ids import PeerId
from mesh.limits import MAX_CONTROL_BYTES
from planner.choose import Candidate, Choice
from planner.plan import ROW_UNITS, Plan, Prediction, Share, Span, Split, Stage
from planner.profile import ModelProfile
from planner.shape_text import brief_text
from planner.timeline import Runs, Timeline, timelines

MAX_CANDIDATES_SHOWN: Final = 24  # of the 255 that 8 devices have; a person reads no more
MAX_BODY_BYTES: Final = MAX_CONTROL_BYTES - 2048  # of the message that carries it; all as JSON
STEPS: Final = 2000  # that a timeline is told in: finer than any picture of it


def choice_as_dict(
    choice: Choice, names: Mapping[PeerId, str], model: ModelProfile
) -> dict[str, Any]:
    """The chosen plan, how it goes, and as many candidates as a message holds, the chosen first."""
    plan = choice.plan
    names = {one: choice.cluster.name_of(one) for one in plan.devices} | dict(names)
    drawn = timelines(plan, choice.cluster, model)
    body: dict[str, Any] = {
        "model": plan.model_name,
        "chosen": plan_as_dict(plan),
        "devices": [{"id": str(one), "name": names[one]} for one in plan.devices],
        "timelines": [_timeline(one, plan) for one in drawn],
        "candidates": [],
    }
    left_bytes = MAX_BODY_BYTES - len(json.dumps(body))
    for candidate in choice.candidates[:MAX_CANDIDATES_SHOWN]:
        row = _candidate(candidate, names, chosen=not body["candidates"])
        left_bytes -= len(json.dumps(row))
        if left_bytes < 0:
            break
        body["candidates"].append(row)
    body["not_shown"] = len(choice.candidates) - len(body["candidates"])
    return body


def _candidate(
    candidate: Candidate, names: Mapping[PeerId, str], *, chosen: bool
) -> dict[str, Any]:
    room, predicted = candidate.capacity, candidate.prediction
    return {
        "chosen": chosen,
        "devices": [str(device) for device in candidate.devices],
        "names": [names.get(device, device.short) for device in candidate.devices],
        "stages": [
            {"layers": [stage.layers.first, stage.layers.last], "device": str(stage.lead)}
            for stage in candidate.stages
        ],
        "shape": brief_text(candidate.stages, candidate.head, names),
        "capacity": {"sessions": room.sessions, "context": room.context} if room else None,
        "predicted": _prediction(predicted) if predicted else None,
        "moved_bytes": candidate.moved_bytes,
        "reason": candidate.reason,
    }


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """`stages` has a row for each share; of what is not cut a share has all, which is None."""
    return {
        "epoch": {"counter": plan.epoch.counter, "leader": str(plan.epoch.leader)},
        "plan_id": str(plan.plan_id),
        "model": plan.model_name,
        "job": plan.job.value,
        "reason": plan.reason,
        "capacity": {"sessions": plan.capacity.sessions, "context": plan.capacity.context},
        "stages": [
            _share(number, stage, share)
            for number, stage in enumerate(plan.stages)
            for share in stage.shares
        ],
        "head": [
            {"device": str(share.device), "tokens": _span(share.vocab)} for share in plan.head
        ],
        "predicted": _prediction(plan.predicted),
    }


def _share(number: int, stage: Stage, share: Share) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": number,
        "layers": _span(stage.layers),
        "device": str(share.device),
    }
    if stage.split is not Split.WHOLE:
        rows = share.rows
        row |= {
            "split": stage.split.value,
            "tiles": stage.tiles,
            "wire": stage.wire.value,
            "heads": _span(share.heads),
            "columns": _span(share.columns),
            # Of a prompt, as fractions.
            "rows": [rows.first / ROW_UNITS, rows.last / ROW_UNITS] if rows else None,
        }
    return row


def _span(span: Span | None) -> list[int] | None:
    return None if span is None else [span.first, span.last]


def _prediction(predicted: Prediction) -> dict[str, Any]:
    return {
        "prefill_ms": predicted.prefill_s * 1e3,
        "decode_ms": predicted.decode_s * 1e3,
        "wire_bytes_per_token": predicted.wire_bytes_per_token,
        "memory_bytes": {str(peer): size for peer, size in predicted.memory_bytes},
    }


def _timeline(one: Timeline, plan: Plan) -> dict[str, Any]:
    """Its lanes name their devices by their place in `devices`."""
    return {
        "title": one.title,
        "ms": one.seconds * 1e3,
        "steps": STEPS,
        "lanes": [
            {
                "device": plan.devices.index(lane.device),
                "compute": _in_steps(lane.compute, one.seconds),
                "wire": _in_steps(lane.wire, one.seconds),
            }
            for lane in one.lanes
        ],
    }


def _in_steps(runs: Runs, seconds: float) -> list[list[int]]:
    """In steps of the whole; runs that no step lies between become one."""
    found: list[list[int]] = []
    for first_s, last_s in runs:
        first, last = floor(STEPS * first_s / seconds), ceil(STEPS * last_s / seconds)
        if found and first <= found[-1][1]:
            found[-1][1] = min(last, STEPS)
        else:
            found.append([first, min(last, STEPS)])
    return found
