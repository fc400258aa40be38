"""The search: every candidate that the question allows, those of one kind after the other."""

from __future__ import annotations

from collections.abc import Sequence

from planner.candidate import Candidate, Question, pipelines, placed
from planner.chunks import chunked
from planner.cost import fits, profiles
from planner.groups import device_sets, groups
from planner.head_cost import cut_head
from planner.memory import placed_bytes
from planner.network import links_of
from planner.plan import Split
from planner.replan import Move

MAX_HEADS = 16  # of the best candidates are tried with the vocabulary cut
HEAD_GAIN = 0.02  # of the request's time: for less, nobody else is asked at every token


def candidates(question: Question, move: Move | None) -> list[Candidate]:
    """All that hold something, and the refused, in no order."""
    rows: list[Candidate] = []
    allowed = question.allowed
    if Split.WHOLE in allowed.strategies:
        rows += pipelines(question, move)
        if allowed.chunks:
            rows += chunked(question, _worth_a_look(question, rows), move)
    rows += groups(question, move, rows)
    if allowed.head and question.request.answer:
        rows += _with_heads(question, rows, move)
    return rows


def _worth_a_look(question: Question, rows: Sequence[Candidate]) -> list[Candidate]:
    """Of the sets of devices that groups are made of: of many only the fastest."""
    sets = {
        frozenset(one.device for one in devices)
        for devices in device_sets(question.cluster.devices, question)
    }
    return [row for row in rows if frozenset(row.devices) in sets]


def _with_heads(
    question: Question, rows: Sequence[Candidate], move: Move | None
) -> list[Candidate]:
    """The best ones with the vocabulary over all devices that make it quicker."""
    best = sorted(
        (row for row in rows if row.prediction),
        key=lambda row: (row.objective_s, len(row.devices), sorted(row.devices)),
    )
    found = []
    for row in best[:MAX_HEADS]:
        other = _with_head(question, row, move)
        if other is not None and other.objective_s < row.objective_s * (1 - HEAD_GAIN):
            found.append(other)
    return found


def _with_head(question: Question, row: Candidate, move: Move | None) -> Candidate | None:
    assert row.capacity is not None, "what is refused has no head"
    devices, model = profiles(question.cluster), question.model
    lead = row.stages[-1].lead
    held = placed_bytes(model, row.stages, (), row.capacity)
    held[lead] -= model.head_bytes
    room = {
        one.device: max(0, one.memory_bytes - one.scratch_bytes - held.get(one.device, 0))
        for one in devices.values()
    }
    # The lead counts as one of a group, for it waits for the others.
    free = sorted(devices.keys() - question.allowed.grouped - {lead})
    if lead in question.allowed.grouped:
        return None
    head = cut_head(lead, free, devices, links_of(question.cluster), model, room)
    if not head:
        return None
    other = placed(question, row.stages, row.capacity, move, head)
    return other if other.prediction and fits(other.prediction, question.cluster) else None
