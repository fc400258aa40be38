"""The choice: among all candidates the plan to run now, and the reason in words.

One function serves a fresh start, a loss and a new device; `keep` is the plan that runs now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from mesh.errors import DoesNotFit, PlanError
from mesh.ids import Epoch, PeerId, PlanId
from planner.allowed import PIPELINES, Allowed
from planner.candidate import Candidate, Question, capacity_steps, refused, running_candidate
from planner.equals import evened
from planner.plan import Capacity, Job, Plan, Split
from planner.profile import Cluster, DeviceProfile, ModelProfile
from planner.reason import (
    does_not_fit_text,
    why_fresh,
    why_kept,
    why_moved,
    why_passed,
    why_switched,
)
from planner.replan import LOAD_BYTES_PER_S, REPAY_REQUESTS, SWITCH_GAIN, Move
from planner.request import Request, request_of
from planner.search import candidates
from planner.sound import is_sound, sound_model

__all__ = ["MAX_SEARCHED_DEVICES", "Candidate", "Choice", "choose"]

# A search grows as 2^devices: 8 devices and 32 layers took 0.04 s, 10 and 100 layers 0.9 s, and
# there is one search for each step of capacity that has to be tried.
MAX_SEARCHED_DEVICES = 10


CROWDING = "takes the room of another model of this size"


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan, and everything it was compared with: the chosen first, the refused last."""

    plan: Plan
    candidates: tuple[Candidate, ...]
    cluster: Cluster  # that it was chosen for


def choose(
    cluster: Cluster,
    model: ModelProfile,
    wanted: Capacity,
    epoch: Epoch,
    plan_id: PlanId,
    keep: Plan | None = None,
    *,
    absent: Mapping[PeerId, str] | None = None,
    load_bytes_per_s: float = LOAD_BYTES_PER_S,
    allowed: Allowed = PIPELINES,
    request: Request | None = None,
) -> Choice:
    """The plan to run now.

    Holding `wanted` comes first (its context capped by the model's; when nothing holds it, the most
    that can be held), then the predicted time of a request, then fewer devices, then their ids.
    Where there is room for two models of this size, a plan that holds weights several times leaves
    room for the other, or is not taken: the next model should make none leave.

    `keep` is the running plan. If it can go on, another replaces it only for more capacity, or for
    a gain above SWITCH_GAIN that repays the loading within REPAY_REQUESTS. If it cannot, because a
    device is gone, loading counts in full beside the request, so the smallest change tends to win.
    `absent` are devices that cannot take part, with the reason. `allowed` says what kinds of plans
    are compared, `request` by what, if not by what is usually asked of such a model. Raises
    DoesNotFit when not even one short conversation can be held, PlanError for a request that makes
    no sense.
    """
    if wanted.sessions < 1 or wanted.context < 1 or not model.layers or not load_bytes_per_s > 0:
        raise PlanError(
            f"expected a model with layers, room for a conversation and a loading speed; got "
            f"{len(model.layers)} layers, {wanted} and {load_bytes_per_s} bytes/s"
        )
    keep = keep if keep is not None and keep.model == model.model else None
    searched, left_out = _searched(cluster, keep)
    searched = evened(searched)
    left_out = {**(absent or {}), **left_out}
    model = sound_model(model)
    steps = capacity_steps(wanted, model)
    question = Question(searched, model, steps, request or request_of(model), allowed)
    running = running_candidate(question, keep.stages, keep.head) if keep else None
    move = Move(keep, load_bytes_per_s, REPAY_REQUESTS if running else 1) if keep else None
    rows = sorted(candidates(question, move), key=lambda row: _rank(question, row, move))
    if not rows or rows[0].prediction is None:
        raise DoesNotFit(does_not_fit_text(question, left_out))
    roomy, crowding = _by_room(searched, rows)
    chosen = _decide(question, roomy, running, move)
    return Choice(
        _plan(question, chosen, epoch, plan_id),
        (
            chosen,
            *_passed(question, roomy, chosen, move),
            *(replace(row, reason=CROWDING) for row in crowding if row.stages != chosen.stages),
            *(refused((one,), why) for one, why in sorted(left_out.items())),
        ),
        searched,
    )


def _by_room(cluster: Cluster, rows: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates, and of the most capacity those apart that take the room of another such model
    where the smallest plan leaves it. Scratch is taken by one model at a time.
    """
    scratch = {one.device: one.scratch_bytes for one in cluster.devices}
    room = sum(max(0, one.memory_bytes - one.scratch_bytes) for one in cluster.devices)

    def held_bytes(row: Candidate) -> int:
        assert row.prediction is not None
        return sum(size - scratch[device] for device, size in row.prediction.memory_bytes)

    able = [row for row in rows if row.prediction and row.capacity == rows[0].capacity]
    least = min(map(held_bytes, able))
    if room < 2 * least:
        return rows, []
    crowding = [row for row in able if room - held_bytes(row) < least]
    return [row for row in rows if not any(row is one for one in crowding)], crowding


def _decide(
    question: Question, rows: list[Candidate], running: Candidate | None, move: Move | None
) -> Candidate:
    """The candidate to run, with its reason."""
    if move is None:
        return replace(rows[0], reason=why_fresh(question, rows[0], rows))
    if running is None:
        return replace(rows[0], reason=why_moved(question, rows[0], move))
    for row in rows:
        if _worth_switching(question, row, running, move):
            return replace(row, reason=why_switched(question, row, running, move))
    return replace(running, reason=why_kept(question, running, rows, move))


def _worth_switching(question: Question, row: Candidate, running: Candidate, move: Move) -> bool:
    if row.capacity != running.capacity:
        return _step(question, row) < _step(question, running)
    gain_s = running.objective_s - row.objective_s
    return gain_s > SWITCH_GAIN * running.objective_s and gain_s * move.requests > move.load_s(
        row.moved_bytes
    )


def _rank(
    question: Question, row: Candidate, move: Move | None
) -> tuple[int, float, int, tuple[PeerId, ...]]:
    """Lower is better. Microseconds decide nothing, so that equal devices are told by their ids."""
    load_s = row.moved_bytes * move.cost_s_per_byte if move else 0.0
    cost_s = row.objective_s + load_s
    rounded = round(cost_s, 6) if cost_s < inf else inf
    return _step(question, row), rounded, len(row.devices), tuple(sorted(row.devices))


def _step(question: Question, row: Candidate) -> int:
    """How far down the steps of capacity; refused ones come after all."""
    return question.steps.index(row.capacity) if row.capacity else len(question.steps)


def _passed(
    question: Question, rows: list[Candidate], chosen: Candidate, move: Move | None
) -> list[Candidate]:
    """Every other set of devices, or other way to use the same, with why it was not chosen."""
    return [
        replace(row, reason=why_passed(question, row, chosen, move)) if row.prediction else row
        for row in rows
        if not row.stages or set(row.devices) != set(chosen.devices) or _way(row) != _way(chosen)
    ]


def _way(row: Candidate) -> tuple[tuple[Split, ...], bool, bool]:
    """How its devices are used, whatever each of them gets."""
    in_chunks = len(row.stages) > 1 and any(stage.tiles > 1 for stage in row.stages)
    return tuple(stage.split for stage in row.stages), in_chunks, bool(row.head)


def _plan(question: Question, chosen: Candidate, epoch: Epoch, plan_id: PlanId) -> Plan:
    assert chosen.capacity is not None, "a plan is made of a candidate that holds something"
    assert chosen.prediction is not None
    return Plan(
        epoch=epoch,
        plan_id=plan_id,
        model=question.model.model,
        model_name=question.model.name,
        job=Job.RUN,
        stages=chosen.stages,
        capacity=chosen.capacity,
        reason=chosen.reason,
        predicted=chosen.prediction,
        head=chosen.head,
    )


# --- who is searched -----------------------------------------------------------------------------


def _searched(cluster: Cluster, keep: Plan | None) -> tuple[Cluster, dict[PeerId, str]]:
    """The devices that the search can take, and why not the others."""
    left_out = {
        device.device: "its profile has a number that cannot be"
        for device in cluster.devices
        if not is_sound(device)
    }
    sound = sorted(
        (device for device in cluster.devices if device.device not in left_out),
        key=lambda device: device.device,
    )
    taken = sound
    if len(sound) > MAX_SEARCHED_DEVICES:
        in_use = set(keep.devices) if keep else set()
        taken = _most_useful(sound, in_use)
    left_out |= {
        device.device: f"the search takes {MAX_SEARCHED_DEVICES} devices; others are larger or "
        f"faster"
        for device in sound
        if device not in taken
    }
    return replace(cluster, devices=tuple(taken)), left_out


def _most_useful(sound: list[DeviceProfile], in_use: set[PeerId]) -> list[DeviceProfile]:
    """Those in use, then in turn the fastest and the largest."""
    fastest = sorted(sound, key=lambda device: device.layer.at(1))
    largest = sorted(sound, key=lambda device: -device.memory_bytes)
    used = [device for device in sound if device.device in in_use]
    turns = [device for pair in zip(fastest, largest, strict=True) for device in pair]
    order = dict.fromkeys([device.device for device in [*used, *turns]])
    taken = list(order)[:MAX_SEARCHED_DEVICES]
    return [device for device in sound if device.device in taken]
