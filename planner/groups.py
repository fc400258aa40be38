"""Groups: stages that several devices share, for the sets of devices that are worth a look.

The devices are taken from the fastest on: what a slower one can add, a faster one adds as well. So
of many devices only the first n are tried, for each n; of a few every set. The fastest leads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from mesh.errors import PlanError
from planner.allowed import Allowed
from planner.candidate import Candidate, Question, placed, refused
from planner.checks import check_shares
from planner.cost import fits, profiles
from planner.counting import whole_numbers
from planner.group_cost import PassCost, prompt_cost, team_of
from planner.memory import alike, share_bytes
from planner.network import links_of
from planner.plan import Capacity, Share, Span, Split, Stage, Wire
from planner.profile import DeviceProfile, ModelProfile, Stacks
from planner.replan import Move
from planner.shares import Cutting, cut_rows, cut_weights, even_rows, rows_by_speed

FEW_DEVICES = 4  # up to here every set of them is tried
MAX_TILES = 4  # more only make the pieces smaller
MAX_CUTS = 6  # between two groups, from where their speeds would have it
INEXACT_GAIN = 0.03  # of the prefill's time: for less, numbers travel as they are
# Of the prefill's time: for less, there is one tile. Two took 8 to 14 % longer than predicted.
TILES_GAIN = 0.12

Devices = tuple[DeviceProfile, ...]


def groups(question: Question, move: Move | None, others: Sequence[Candidate]) -> list[Candidate]:
    """The best of each allowed kind for each set, at the largest capacity that it holds; `others`
    are candidates of other kinds.
    """
    if not question.allowed.splits or question.model.stacks is Stacks.BOTH:
        return []
    able = _able(question)
    rows = _left_out(question)
    for devices in device_sets(able, question):
        for split in question.allowed.splits:
            row = _one_group(question, devices, split, move)
            if row is not None:
                rows.append(row)
    held = [question.steps.index(row.capacity) for row in (*rows, *others) if row.capacity]
    rows += _two_groups(question, able, move, min(held, default=len(question.steps)))
    return rows


def by_speed(question: Question, devices: Devices) -> Devices:
    """The fastest first; of equals the one with the smaller id."""
    request = question.request

    def seconds(one: DeviceProfile) -> float:
        return request.seconds(one.layer.at(request.prompt), one.layer.at(1) + one.head_s / 32)

    return tuple(sorted(devices, key=lambda one: (seconds(one), one.device)))


def device_sets(devices: Devices, question: Question) -> Iterator[Devices]:
    """Of at least two, each in the order of speed."""
    ordered = by_speed(question, devices)
    for size in range(2, len(ordered) + 1):
        yield from combinations(ordered, size) if len(ordered) <= FEW_DEVICES else [ordered[:size]]


def _able(question: Question) -> Devices:
    grouped = question.allowed.grouped
    return tuple(one for one in question.cluster.devices if one.parts and one.device not in grouped)


def _left_out(question: Question) -> list[Candidate]:
    """In one row, so that somebody who wonders finds the reason."""
    taken = sorted(
        one.device for one in question.cluster.devices if one.device in question.allowed.grouped
    )
    reason = "shares a stage of another model, and can be in one group at a time"
    return [refused(tuple(taken), reason)] if taken else []


# --- one stage -----------------------------------------------------------------------------------


def _one_group(
    question: Question, devices: Devices, split: Split, move: Move | None
) -> Candidate | None:
    layers = Span(0, len(question.model.layers))
    for capacity in question.steps:
        stage = cut_stage(question, devices, split, layers, capacity)
        if stage is None:
            continue
        tuned = _tuned(question, stage, devices)
        if tuned is None:
            return None  # a link is missing
        row = placed(question, (tuned,), capacity, move)
        if row.prediction and fits(row.prediction, question.cluster):
            return row
    return None


def cut_stage(
    question: Question,
    devices: Devices,
    split: Split,
    layers: Span,
    capacity: Capacity,
) -> Stage | None:
    """These layers over the devices, where they have the memory, else None."""
    model = question.model
    ends = layers.last == len(model.layers)
    head_bytes = model.head_bytes if ends else 0
    limits = tuple(
        one.memory_bytes - one.scratch_bytes - (head_bytes if number == 0 else 0)
        for number, one in enumerate(devices)
    )
    kinds = tuple(alike(model, layers))
    cutting = Cutting(model, layers, devices, capacity, question.request, limits, kinds)
    if len(devices) == 1:
        split = Split.WHOLE
    match split:
        case Split.HYBRID | Split.TENSOR:
            shares = cut_weights(cutting)
            if shares is None:
                return None
            rowed = even_rows(shares) if split is Split.HYBRID else shares
            stage = Stage(layers, rowed, split, 1, _first_wire(question.allowed))
            return stage if _is_sound(stage, model) else None
        case Split.SEQUENCE:
            whole = share_bytes(model, layers, Share(devices[0].device), capacity)
            if min(limits) < whole or model.cut_of(0) is None:
                return None
            return Stage(layers, cut_rows(cutting), split, 1, _first_wire(question.allowed))
        case Split.WHOLE:
            share = Share(devices[0].device)
            fits_here = share_bytes(model, layers, share, capacity) <= limits[0]
            return Stage(layers, (share,)) if fits_here else None


def _is_sound(stage: Stage, model: ModelProfile) -> bool:
    """Whether layers with other heads than the first one's leave something for each share."""
    try:
        check_shares(stage, model)
    except PlanError:
        return False
    return True


def _first_wire(allowed: Allowed) -> Wire:
    return Wire.FP16 if Wire.FP16 in allowed.wires else min(allowed.wires, default=Wire.FP32)


def _tuned(question: Question, stage: Stage, devices: Devices) -> Stage | None:
    """With the tiles, the wire type and the rows that make a prompt quickest, one after the other;
    None where a link is missing.
    """
    model, request = question.model, question.request
    team = team_of(stage, profiles(question.cluster), links_of(question.cluster), model)
    if team is None:
        return None

    whole = prompt_cost(stage, team, model, request.prompt)
    known = {stage: whole.seconds}

    def seconds(one: Stage) -> float:
        if one not in known:
            known[one] = prompt_cost(one, team, model, request.prompt).seconds
        return known[one]

    best = _tiled(stage, whole, model, seconds)
    if stage.split is Split.HYBRID:
        cutting = Cutting(model, stage.layers, devices, question.floor, request, (), ())
        uneven = replace(best, shares=rows_by_speed(best.shares, cutting))
        best = min((best, uneven), key=seconds)
    wires = [replace(best, wire=wire) for wire in Wire if wire in question.allowed.wires]
    exact = [one for one in wires if one.wire is Wire.FP32]
    quickest = min(wires, key=seconds, default=best)
    if exact and seconds(exact[0]) * (1 - INEXACT_GAIN) <= seconds(quickest):
        return exact[0]
    return quickest


def _tiled(
    stage: Stage, cost: PassCost, model: ModelProfile, seconds: Callable[[Stage], float]
) -> Stage:
    """In the tiles that pay; `cost` is that of one. Tiles hide waiting and nothing else, so where
    there is too little of it none are tried; and more of them only while more pay.
    """
    enough_s = cost.seconds * (1 - TILES_GAIN)
    busy_s = max(max(one.compute_s, one.wire_s) for one in cost.efforts)
    best = stage
    for tiles in _tile_counts(stage, model)[1:] if busy_s < enough_s else ():
        more = replace(stage, tiles=tiles)
        if seconds(more) >= seconds(best):
            break
        best = more
    return best if seconds(best) < enough_s else stage


def _tile_counts(stage: Stage, model: ModelProfile) -> range:
    """A decoder's rows wait only for those before them, and no tiles are needed to overlap."""
    in_tiles = stage.split is Split.HYBRID or (
        stage.split is Split.SEQUENCE and model.stacks is Stacks.ENCODER
    )
    return range(1, MAX_TILES + 1) if in_tiles else range(1, 2)


# --- two stages ----------------------------------------------------------------------------------


def _two_groups(
    question: Question, able: Devices, move: Move | None, best: int
) -> Iterator[Candidate]:
    """Two groups in a row, all devices in them, where not every one holds the whole model; no less
    than the step of capacity that is held anyway.
    """
    ordered = by_speed(question, able)
    layers = Span(0, len(question.model.layers))
    if len(ordered) < 3 or len(layers) < 2:
        return
    needed = share_bytes(question.model, layers, Share(ordered[0].device), question.wanted)
    if all(one.memory_bytes - one.scratch_bytes >= needed for one in ordered):
        return
    for split in question.allowed.splits:
        if split is Split.TENSOR:
            continue
        for size in range(1, len(ordered)):
            # The faster ones come last: there is the head.
            for capacity in question.steps[: best + 1]:
                row = _in_a_row(question, (ordered[size:], ordered[:size]), split, capacity, move)
                if row is not None:
                    yield row
                    break


def _in_a_row(
    question: Question,
    parts: tuple[Devices, Devices],
    split: Split,
    capacity: Capacity,
    move: Move | None,
) -> Candidate | None:
    """Cut between two layers by their speed, or near there if memory wants it so."""
    depth = len(question.model.layers)
    speeds = [sum(1 / max(one.layer.at(1), 1e-12) for one in part) for part in parts]
    wish = whole_numbers(depth, speeds, [depth - 1, depth - 1])
    assert wish is not None, "there are at least two layers"
    cuts = sorted(range(1, depth), key=lambda at: (abs(at - wish[0]), at))
    for cut in cuts[:MAX_CUTS]:
        spans = (Span(0, cut), Span(cut, depth))
        stages = []
        for who, span in zip(parts, spans, strict=True):
            stage = cut_stage(question, who, split, span, capacity)
            if stage is None:
                break
            stages.append(replace(stage, tiles=_tile_counts(stage, question.model)[:2][-1]))
        if len(stages) == len(parts):
            row = placed(question, tuple(stages), capacity, move)
            if row.prediction and fits(row.prediction, question.cluster):
                return row
    return None
