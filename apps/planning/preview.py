"""A planning decision as plain data: what `potluck plan` and the API show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh.ids import PeerId
from planner.choose import Candidate, Choice
from planner.plan import Plan, Prediction

MAX_CANDIDATES_SHOWN = 24  # of the 255 that 8 devices have; more would not fit a message


def choice_as_dict(choice: Choice, names: Mapping[PeerId, str]) -> dict[str, Any]:
    """The chosen plan and the candidates, the chosen one first."""
    shown = choice.candidates[:MAX_CANDIDATES_SHOWN]
    return {
        "model": choice.plan.model_name,
        "chosen": plan_as_dict(choice.plan),
        "candidates": [_candidate(one, names, chosen=one is shown[0]) for one in shown],
        "not_shown": len(choice.candidates) - len(shown),
    }


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
        "capacity": {"sessions": room.sessions, "context": room.context} if room else None,
        "predicted": _prediction(predicted) if predicted else None,
        "moved_bytes": candidate.moved_bytes,
        "reason": candidate.reason,
    }


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    return {
        "epoch": {"counter": plan.epoch.counter, "leader": str(plan.epoch.leader)},
        "plan_id": str(plan.plan_id),
        "model": plan.model_name,
        "job": plan.job.value,
        "reason": plan.reason,
        "capacity": {"sessions": plan.capacity.sessions, "context": plan.capacity.context},
        "stages": [
            {"layers": [stage.layers.first, stage.layers.last], "device": str(share.device)}
            for stage in plan.stages
            for share in stage.shares
        ],
        "predicted": _prediction(plan.predicted),
    }


def _prediction(predicted: Prediction) -> dict[str, Any]:
    return {
        "prefill_ms": predicted.prefill_s * 1e3,
        "decode_ms": predicted.decode_s * 1e3,
        "wire_bytes_per_token": predicted.wire_bytes_per_token,
        "memory_bytes": {str(peer): size for peer, size in predicted.memory_bytes},
    }
