"""Reasons: why a plan was chosen, kept or refused, in sentences with numbers.

`rows` are candidates from the best to the refused ones, as `choose` ranks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from mesh.ids import PeerId
from planner.candidate import Candidate, Question
from planner.cost import network_s, profiles
from planner.memory import stage_bytes
from planner.partition import nearest_placements
from planner.plan import Prediction, Span
from planner.replan import REPAY_REQUESTS, SWITCH_GAIN, Move
from planner.shape_text import is_plain, shape_text
from planner.words import (
    conversations_text,
    held_text,
    lacking_text,
    list_text,
    names_text,
    shortage_text,
    shortages,
    size_text,
    time_text,
)


def why_fresh(question: Question, chosen: Candidate, rows: Sequence[Candidate]) -> str:
    """Why this plan, when nothing runs yet."""
    if not is_plain(chosen.stages, chosen.head):
        return f"{_shape(question, chosen)}: {_instead(chosen, rows, question)}"
    why = _why_not_more if len(chosen.devices) == 1 else _why_not_fewer
    return f"{_count_text(chosen)}: {why(question, chosen, rows)}; {_end(question, chosen)}"


def why_moved(question: Question, chosen: Candidate, move: Move) -> str:
    """Why this plan, when the running one cannot go on."""
    present = profiles(question.cluster)
    lost = [device for device in move.old.devices if device not in present]
    cause = (
        f"after losing {names_text(question.cluster, lost)}"
        if lost
        else "since the plan before fits no more"
    )
    return (
        f"{_shape(question, chosen)}, {cause}: the quickest way to go on, "
        f"{_load_text(chosen, move)}; {_end(question, chosen)}"
    )


def why_switched(question: Question, chosen: Candidate, running: Candidate, move: Move) -> str:
    """Why the running plan gives way to a better one."""
    joined = [device for device in chosen.devices if device not in running.devices]
    left = [device for device in running.devices if device not in chosen.devices]
    lead = "the layers move"
    if joined:
        lead = f"{names_text(question.cluster, joined)} join{'s' if len(joined) == 1 else ''}"
    elif left:
        lead = f"{names_text(question.cluster, left)} no longer needed"
    if chosen.capacity != running.capacity:
        why = (
            f"holds {_held_text(question, chosen)}, the running plan "
            f"{_held_text(question, running)}; {_load_text(chosen, move)}"
        )
    else:
        why = f"{_per_token_text(running, chosen)} repays {_repay_text(running, chosen, move)}"
    return f"{_shape(question, chosen)}, {lead}: {why}; {_end(question, chosen)}"


def why_kept(question: Question, running: Candidate, rows: Sequence[Candidate], move: Move) -> str:
    """Why the running plan stays, and why not with a device that it does not use."""
    spare = {device.device for device in question.cluster.devices} - set(running.devices)
    rivals = [
        row
        for row in rows
        if row.prediction and (row.stages, row.head) != (running.stages, running.head)
    ]
    equal = [row for row in rivals if row.capacity == running.capacity]
    with_spare = [row for row in equal or rivals if spare & set(row.devices)]
    faster = [row for row in equal if row.objective_s < running.objective_s]
    why = "nothing better is possible"
    if with_spare or faster:
        rival = min(with_spare or faster, key=lambda row: row.objective_s)
        used = [device for device in rival.devices if device in spare]
        lead = f"{names_text(question.cluster, used)} not used" if used else "not cut anew"
        why = f"{lead}, because {_why_no_switch(question, running, rival, move)}"
    return f"The running plan stays: {why}; {_end(question, running)}"


def why_passed(question: Question, row: Candidate, chosen: Candidate, move: Move | None) -> str:
    """Why a candidate that could hold the model was not chosen."""
    if row.capacity != chosen.capacity:
        return f"holds {_held_text(question, row)}"
    text = f"{time_text(row.objective_s)} for {question.request}"
    if row.objective_s < chosen.objective_s + 1e-6:
        text = f"as fast as the chosen plan, or faster: {text}"
    else:
        text += f", chosen {time_text(chosen.objective_s)}"
    if move is not None and row.moved_bytes:
        text += f"; {_load_text(row, move)}"
    if not is_plain(row.stages, row.head):
        text = f"{shape_text(row.stages, row.head, question.cluster)}: {text}"
    return text


def does_not_fit_text(question: Question, absent: Mapping[PeerId, str]) -> str:
    """What is needed, what there is, which memory is short by how much, and what to do."""
    model, cluster = question.model, question.cluster
    left_out = "; ".join(
        f"{question.cluster.name_of(device)}: {reason}" for device, reason in sorted(absent.items())
    )
    left_out = f" Left out: {left_out}." if left_out else ""
    if not cluster.devices:
        return f"No device here can take part in running {model.name}.{left_out}"
    # A single device needs no link, so there is always something that is nearest.
    nearest = min(
        nearest_placements(cluster, model, question.floor).values(),
        key=lambda stages: (
            sum(shortages(stages, cluster, model, question.floor).values()),
            len(stages),
            sorted(stage.lead for stage in stages),
        ),
    )
    names = names_text(cluster, (stage.lead for stage in nearest))
    return (
        f"{model.name} does not fit: even for {conversations_text(question.floor)} on {names} it "
        f"{shortage_text(nearest, cluster, model, question.floor)}. Give more with --memory, add "
        f"a device, or take a smaller model.{left_out}"
    )


# --- clauses -------------------------------------------------------------------------------------


def _end(question: Question, candidate: Candidate) -> str:
    """What every reason ends with: the prediction, and what had to be reduced and why."""
    prediction = _prediction(candidate)
    request = question.request
    text = f"predicted {time_text(prediction.prefill_s)} prefill of {request.prompt} tokens"
    text += f", {time_text(prediction.decode_s)} per token." if request.answer else "."
    if candidate.capacity == question.wanted:
        return text
    cluster, model = question.cluster, question.model
    missing = min(
        (
            shortages(stages, cluster, model, question.wanted)
            for stages in nearest_placements(cluster, model, question.wanted).values()
        ),
        key=lambda short: (sum(short.values()), sorted(short)),
    )
    held, lacking = _held_text(question, candidate), lacking_text(missing, cluster)
    return f"{text} It holds {held}; all would need another {lacking}."


def _why_not_more(question: Question, chosen: Candidate, rows: Sequence[Candidate]) -> str:
    """Why one device is better than several."""
    name = names_text(question.cluster, chosen.devices)
    if len(question.cluster.devices) == 1:
        return f"{name} is the only one that can take part"
    rival = _best(row for row in rows if len(row.devices) > 1)
    if rival is None or rival.capacity != chosen.capacity:
        return f"{name} holds the whole model, and no several together hold as much"
    return (
        f"{name} holds the whole model and takes {time_text(chosen.objective_s)} for "
        f"{question.request}; {names_text(question.cluster, rival.devices)} together would take "
        f"{time_text(rival.objective_s)}{_on_network(question, rival)}"
    )


def _on_network(question: Question, rival: Candidate) -> str:
    """How much of its time a pipeline spends there; a group computes meanwhile."""
    if not is_plain(rival.stages, rival.head):
        return f" ({shape_text(rival.stages, rival.head, question.cluster)})"
    request = question.request
    wire_s = request.seconds(
        network_s(rival.stages, question.cluster, question.model, request.prompt),
        network_s(rival.stages, question.cluster, question.model, 1),
    )
    return f", {time_text(wire_s)} of it on the network"


def _instead(chosen: Candidate, rows: Sequence[Candidate], question: Question) -> str:
    """What a plan that shares its work takes, instead of what the best single device does."""
    alone = _best(row for row in rows if len(row.devices) == 1)
    if alone is None or alone.capacity != chosen.capacity:
        why = _why_not_size(question, chosen, rows, 1)
        return f"{why}; {_end(question, chosen)}"
    shared, single = _prediction(chosen), _prediction(alone)
    name = names_text(question.cluster, alone.devices)
    text = (
        f"prefill {time_text(shared.prefill_s)} instead of {time_text(single.prefill_s)} on "
        f"{name} alone"
    )
    if question.request.answer:
        text += f", {time_text(shared.decode_s)} per token instead of {time_text(single.decode_s)}"
    return f"{text}; {_end(question, chosen)}"


def _shape(question: Question, candidate: Candidate) -> str:
    """How it begins to be told: with a capital letter."""
    if is_plain(candidate.stages, candidate.head):
        return _count_text(candidate)
    text = shape_text(candidate.stages, candidate.head, question.cluster)
    return text[:1].upper() + text[1:]


def _why_not_fewer(question: Question, chosen: Candidate, rows: Sequence[Candidate]) -> str:
    """Why neither one device, nor one device less, would do."""
    sizes = dict.fromkeys((1, len(chosen.devices) - 1))
    return list_text([_why_not_size(question, chosen, rows, size) for size in sizes])


def _why_not_size(
    question: Question, chosen: Candidate, rows: Sequence[Candidate], size: int
) -> str:
    who, hold = (f"{size} devices", "hold") if size > 1 else ("a single device", "holds")
    best = _best(row for row in rows if len(row.devices) == size)
    if best is None and size > 1:
        return f"no {who} can hold the model"
    if best is None:
        largest = max(question.cluster.devices, key=lambda device: device.memory_bytes)
        whole = Span(0, len(question.model.layers))
        needed = stage_bytes(largest, question.model, whole, question.floor)
        return (
            f"no single device can hold {size_text(needed)} "
            f"(the largest allows {size_text(largest.memory_bytes)})"
        )
    if best.capacity != chosen.capacity:
        return f"{who} {hold} {_held_text(question, best)}"
    return (
        f"{who} would take {time_text(best.objective_s)} for {question.request}, "
        f"these {time_text(chosen.objective_s)}"
    )


def _why_no_switch(question: Question, running: Candidate, rival: Candidate, move: Move) -> str:
    if rival.capacity != running.capacity:
        return f"with it the mesh holds {_held_text(question, rival)}"
    gain_s = running.objective_s - rival.objective_s
    times = (
        f"{time_text(running.objective_s)} -> {time_text(rival.objective_s)} for {question.request}"
    )
    if gain_s <= 0:
        return f"it would not be faster ({times})"
    if gain_s <= SWITCH_GAIN * running.objective_s:
        return f"{times} is less than the {SWITCH_GAIN:.0%} that a switch must gain"
    load = time_text(move.load_s(rival.moved_bytes))
    return f"{times} does not repay {load} of loading within {REPAY_REQUESTS} requests"


def _repay_text(running: Candidate, chosen: Candidate, move: Move) -> str:
    """The loading, and after how many tokens (or requests) its time has been won back."""
    load_s = move.load_s(chosen.moved_bytes)
    per_token_s = _prediction(running).decode_s - _prediction(chosen).decode_s
    text = f"{time_text(load_s)} of loading after"
    if per_token_s > 0:
        return f"{text} {ceil(load_s / per_token_s)} tokens"
    return f"{text} {ceil(load_s / (running.objective_s - chosen.objective_s))} requests"


def _per_token_text(running: Candidate, chosen: Candidate) -> str:
    before_s, after_s = _prediction(running).decode_s, _prediction(chosen).decode_s
    return f"{time_text(before_s)} -> {time_text(after_s)} per token"


def _load_text(candidate: Candidate, move: Move) -> str:
    moved = candidate.moved_bytes
    return f"{size_text(moved)} to load in {time_text(move.load_s(moved))}"


def _count_text(candidate: Candidate) -> str:
    count = len(candidate.devices)
    return "One device" if count == 1 else f"{count} devices"


def _held_text(question: Question, candidate: Candidate) -> str:
    assert candidate.capacity is not None, "a refused candidate holds nothing"
    return held_text(candidate.capacity, question.wanted)


def _prediction(candidate: Candidate) -> Prediction:
    assert candidate.prediction is not None, "a refused candidate has no prediction"
    return candidate.prediction


def _best(rows: Iterable[Candidate]) -> Candidate | None:
    return next((row for row in rows if row.prediction), None)
