"""Candidates: what sets of devices can do at best, in each allowed way, or why they cannot."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf

from mesh.ids import PeerId
from planner.allowed import PIPELINES, Allowed
from planner.cost import fits, objective_s, predict
from planner.partition import Placements, Subset, fastest_placements, nearest_placements
from planner.plan import Capacity, Prediction, Share, Stage
from planner.profile import Cluster, ModelProfile
from planner.replan import Move, moved_bytes
from planner.request import Request
from planner.words import shortage_text

MIN_CONTEXT = 2048  # tokens: a page in and a page out; less is no conversation


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of devices in one way. Refused if `prediction` is None; then there are no stages."""

    devices: tuple[PeerId, ...]  # in the order of the stages; of a refused one by id
    stages: tuple[Stage, ...]
    capacity: Capacity | None  # the most it holds of what is wanted
    prediction: Prediction | None
    moved_bytes: int  # to load, because the running plan does not hold them where they go
    reason: str  # why it is chosen, not chosen, or refused
    head: tuple[Share, ...] = ()  # as in a plan
    # Seconds for the request that plans are compared by; infinite when refused.
    objective_s: float = inf


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: run `model` on `cluster`, with the first of `steps` that can be held."""

    cluster: Cluster
    model: ModelProfile
    steps: tuple[Capacity, ...]  # the wanted capacity, then less and less
    request: Request = Request()
    allowed: Allowed = PIPELINES

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


def pipelines(question: Question, move: Move | None) -> list[Candidate]:
    """One for every set of devices, each at the largest capacity that it holds."""
    ids = sorted(device.device for device in question.cluster.devices)
    subsets = [
        frozenset(some) for size in range(1, len(ids) + 1) for some in combinations(ids, size)
    ]
    held: dict[Subset, Candidate] = {}
    for capacity in question.steps:
        if len(held) == len(subsets):
            break
        found = fastest_placements(
            question.cluster, question.model, capacity, move, question.request
        )
        for subset in found.keys() - held.keys():
            held[subset] = placed(question, found[subset], capacity, move)
    nearest: Placements = {}
    if len(held) < len(subsets):
        nearest = nearest_placements(question.cluster, question.model, question.floor)
    return [
        held[subset] if subset in held else _refused(question, subset, nearest)
        for subset in subsets
    ]


def running_candidate(
    question: Question, stages: tuple[Stage, ...], head: tuple[Share, ...] = ()
) -> Candidate | None:
    """The running plan as it is, or None when it cannot go on."""
    present = {device.device for device in question.cluster.devices}
    shares = [*(share for stage in stages for share in stage.shares), *head]
    if any(share.device not in present for share in shares):
        return None
    for capacity in question.steps:
        found = placed(question, stages, capacity, None, head)
        if found.prediction and fits(found.prediction, question.cluster):
            return found
    return None


def placed(
    question: Question,
    stages: tuple[Stage, ...],
    capacity: Capacity,
    move: Move | None,
    head: tuple[Share, ...] = (),
) -> Candidate:
    """These stages as a candidate, whether or not they fit."""
    shares = [*(share for stage in stages for share in stage.shares), *head]
    prediction = predict(stages, question.cluster, question.model, capacity, head, question.request)
    return Candidate(
        devices=tuple(dict.fromkeys(share.device for share in shares)),
        stages=stages,
        capacity=capacity,
        prediction=prediction,
        moved_bytes=moved_bytes(move.old, stages, question.model, head) if move else 0,
        reason="",
        head=head,
        objective_s=objective_s(prediction, question.request),
    )


def _refused(question: Question, subset: Subset, nearest: Placements) -> Candidate:
    layers = len(question.model.layers)
    if subset in nearest:
        reason = shortage_text(nearest[subset], question.cluster, question.model, question.floor)
    elif len(subset) > layers:
        reason = f"{layers} layers cannot be cut over {len(subset)} devices"
    else:
        reason = "no chain of measured links joins them"
    return refused(tuple(sorted(subset)), reason)


def refused(devices: tuple[PeerId, ...], reason: str) -> Candidate:
    return Candidate(devices, (), None, None, 0, reason)
