"""Pipelines that take a prompt in chunks: while a stage has one, the stage before it has the next.

What a token takes is the sum over the stages, what a prompt takes then depends on the slowest. So
beside the cuts that a token is quickest with, those are tried with which all stages take as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.candidate import Candidate, Question, placed
from planner.cost import fits, profiles
from planner.counting import spans, whole_numbers
from planner.memory import share_bytes
from planner.plan import MIN_CHUNK_ROWS, Share, Span, Stage
from planner.profile import Stacks
from planner.replan import Move

CHUNK_COUNTS = (2, 3, 4, 6, 8)


def chunked(question: Question, rows: Sequence[Candidate], move: Move | None) -> list[Candidate]:
    """For each pipeline of `rows` the best way to take prompts in chunks, where that is quicker."""
    if question.model.stacks is not Stacks.DECODER:
        return []
    found = []
    for row in rows:
        if row.capacity is None or len(row.stages) < 2:
            continue
        others = [
            other
            for stages in _cuts(question, row)
            for other in _in_chunks(question, stages, row, move)
        ]
        best = min(others, key=lambda one: one.objective_s, default=row)
        if best.objective_s < row.objective_s:
            found.append(best)
    return found


def _in_chunks(
    question: Question, stages: tuple[Stage, ...], row: Candidate, move: Move | None
) -> Iterator[Candidate]:
    assert row.capacity is not None, "what is refused is not cut"
    for count in CHUNK_COUNTS:
        if question.request.prompt < count * MIN_CHUNK_ROWS:
            return
        in_chunks = tuple(replace(stage, tiles=count) for stage in stages)
        other = placed(question, in_chunks, row.capacity, move)
        if other.prediction and fits(other.prediction, question.cluster):
            yield other


def _cuts(question: Question, row: Candidate) -> Iterator[tuple[Stage, ...]]:
    """As they are, and in proportion to how fast each device is with a prompt."""
    yield row.stages
    devices, depth = profiles(question.cluster), len(question.model.layers)
    chosen = [devices[stage.lead] for stage in row.stages]
    weights = [1 / max(one.layer.at(question.request.prompt), 1e-12) for one in chosen]
    assert row.capacity is not None, "what is refused is not cut"
    whole = share_bytes(question.model, Span(0, depth), Share(row.stages[0].lead), row.capacity)
    each = max(1, whole // depth)
    most = [min(depth, (one.memory_bytes - one.scratch_bytes) // each) for one in chosen]
    most[-1] = min(depth, most[-1] - question.model.head_bytes // each)
    counts = whole_numbers(depth, weights, most)
    if counts is not None and spans(counts) != [stage.layers for stage in row.stages]:
        yield tuple(
            Stage(span, stage.shares) for span, stage in zip(spans(counts), row.stages, strict=True)
        )
