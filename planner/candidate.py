"""Candidates: for every set of devices the best it can do, or why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf

from mesh.ids import PeerId
from planner.cost import fits, objective_s, predict
from planner.partition import Placements, Subset, fastest_placements, nearest_placements
from planner.plan import Capacity, Prediction, Stage
from planner.profile import Cluster, ModelProfile
from planner.replan import Move, moved_bytes
from planner.words import shortage_text

MIN_CONTEXT = 2048  # tokens: a page in and a page out; less is no conversation


@dataclass(frozen=True, slots=True)
class Candidate:
    """One set of devices. Refused if `prediction` is None; then there are no stages either."""

    devices: tuple[PeerId, ...]  # in the order of the stages; of a refused one by id
    stages: tuple[Stage, ...]
    capacity: Capacity | None  # the most it holds of what is wanted
    prediction: Prediction | None
    moved_bytes: int  # to load, because the running plan does not hold them where they go
    reason: str  # why it is chosen, not chosen, or refused

    @property
    def objective_s(self) -> float:
        """Seconds for the request that plans are compared by; infinite when refused."""
        return inf if self.prediction is None else objective_s(self.prediction)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: run `model` on `cluster`, with the first of `steps` that can be held."""

    cluster: Cluster
    model: ModelProfile
    steps: tuple[Capacity, ...]  # the wanted capacity, then less and less

    @property
    def wanted(self) -> Capacity:
        return self.steps[0]

    @property
    def floor(self) -> Capacity:
        return self.steps[-1]


def capacity_steps(wanted: Capacity, model: ModelProfile) -> tuple[Capacity, ...]:
    """What to try, most first: sessions halved down to 1, then the context to its floor."""
    sessions, context = wanted.sessions, min(wanted.context, model.context)
    floor = min(MIN_CONTEXT, context)
    steps = [Capacity(sessions, context)]
    while sessions > 1 or context > floor:
        if sessions > 1:
            sessions //= 2
        else:
            context = max(context // 2, floor)
        steps.append(Capacity(sessions, context))
    return tuple(steps)


def candidates(question: Question, move: Move | None) -> list[Candidate]:
    """One for every set of devices, each at the largest capacity that it holds."""
    ids = sorted(device.device for device in question.cluster.devices)
    subsets = [
        frozenset(some) for size in range(1, len(ids) + 1) for some in combinations(ids, size)
    ]
    held: dict[Subset, Candidate] = {}
    for capacity in question.steps:
        if len(held) == len(subsets):
            break
        found = fastest_placements(question.cluster, question.model, capacity, move)
        for subset in found.keys() - held.keys():
            held[subset] = _placed(question, found[subset], capacity, move)
    nearest: Placements = {}
    if len(held) < len(subsets):
        nearest = nearest_placements(question.cluster, question.model, question.floor)
    return [
        held[subset] if subset in held else _refused(question, subset, nearest)
        for subset in subsets
    ]


def running_candidate(question: Question, stages: tuple[Stage, ...]) -> Candidate | None:
    """The stages of the running plan as they are, or None when they cannot go on."""
    present = {device.device for device in question.cluster.devices}
    if any(stage.lead not in present for stage in stages):
        return None
    for capacity in question.steps:
        placed = _placed(question, stages, capacity, None)
        if placed.prediction and fits(placed.prediction, question.cluster):
            return placed
    return None


def _placed(
    question: Question, stages: tuple[Stage, ...], capacity: Capacity, move: Move | None
) -> Candidate:
    return Candidate(
        devices=tuple(stage.lead for stage in stages),
        stages=stages,
        capacity=capacity,
        prediction=predict(stages, question.cluster, question.model, capacity),
        moved_bytes=moved_bytes(move.old, stages, question.model) if move else 0,
        reason="",
    )


def _refused(question: Question, subset: Subset, nearest: Placements) -> Candidate:
    layers = len(question.model.layers)
    if subset in nearest:
        reason = shortage_text(nearest[subset], question.cluster, question.model, question.floor)
    elif len(subset) > layers:
        reason = f"{layers} layers cannot be cut over {len(subset)} devices"
    else:
        reason = "no chain of measured links joins them"
    return Candidate(tuple(sorted(subset)), (), None, None, 0, reason)
