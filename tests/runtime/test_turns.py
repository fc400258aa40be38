"""Turns: every stream is in every turn, and no prompt holds them up for long."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import Epoch, PeerId, PlanId, SessionId
from mesh.tensor_frame import DType, FrameHeader, Kind
from runtime.turns import (
    MAX_STEP_ROWS,
    MIN_SLICE_ROWS,
    SHORT_ROWS,
    SLICE_S,
    Pace,
    Waiting,
    next_turn,
)

PLAN = PlanId.new()
SESSIONS = [SessionId.new() for _ in range(6)]


def waiting(session: int, rows: int, position: int = 0, done: int = 0) -> Waiting:
    header = FrameHeader(
        epoch=Epoch(1, PeerId("a" * 64)),
        plan=PLAN,
        session=SESSIONS[session],
        kind=Kind.TOKENS,
        dtype=DType.INT32,
        choose=True,
        position=position,
        rows=rows,
        row=0,
        tile_rows=rows,
        width=1,
    )
    return Waiting(header, torch.zeros(rows, 1), done)


def test_a_prompt_alone_is_done_at_once() -> None:
    step = waiting(0, 512)
    assert next_turn([step], alone=True, slice_rows=64) == [(step, 512)]


def test_a_prompt_beside_streams_goes_in_slices_and_no_stream_waits() -> None:
    prompt, one, two = waiting(0, 512, done=100), waiting(1, 1), waiting(2, 1)
    turn = next_turn([prompt, one, two], alone=False, slice_rows=64)
    assert turn == [(prompt, 64), (one, 1), (two, 1)]


def test_two_prompts_share_a_slice_the_older_one_first() -> None:
    one, two = waiting(0, 50), waiting(1, 512)
    assert next_turn([one, two], alone=False, slice_rows=64) == [(one, 50), (two, 14)]


def test_of_one_conversation_only_the_oldest_step_takes_part() -> None:
    first, second = waiting(0, 512), waiting(0, 512, position=512)
    assert next_turn([first, second], alone=True, slice_rows=64) == [(first, 512)]


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, MAX_STEP_ROWS)), max_size=12),
    slice_rows=st.integers(MIN_SLICE_ROWS, MAX_STEP_ROWS),
)
def test_any_turn_is_bounded_and_nobody_starves(
    steps: list[tuple[int, int]], slice_rows: int
) -> None:
    queue = [waiting(session, rows) for session, rows in steps]
    turn = next_turn(queue, alone=False, slice_rows=slice_rows)
    assert bool(turn) == bool(queue)
    assert all(0 < rows <= step.left for step, rows in turn)
    sessions = [step.header.session for step, _ in turn]
    assert len(set(sessions)) == len(sessions)
    assert sum(rows for step, rows in turn if step.left > SHORT_ROWS) <= slice_rows
    if queue:
        assert queue[0] in [step for step, _ in turn], "the oldest goes on in every turn"


def test_the_slice_follows_the_pace_of_the_device() -> None:
    pace = Pace()
    pace.note(1, 5.0)  # a token's turn says nothing of prompts
    first = pace.slice_rows
    pace.note(100, 1.0)
    assert pace.slice_rows == round(SLICE_S * 100)
    assert first >= MIN_SLICE_ROWS
    pace.note(100, 100.0)
    assert pace.slice_rows == MIN_SLICE_ROWS
    for _ in range(30):
        pace.note(500, 0.001)
    assert pace.slice_rows == MAX_STEP_ROWS


def source(session: int, rows: int) -> Waiting:
    step = waiting(session, rows)
    step.header = replace(step.header, kind=Kind.SOURCE)
    return step


def test_a_source_is_never_cut_and_others_wait_for_one_of_them_at_most() -> None:
    first, second, prompt, stream = source(0, 400), source(1, 300), waiting(2, 90), waiting(3, 1)
    queue = [first, second, prompt, stream]
    assert next_turn(queue, alone=False, slice_rows=64) == [(first, 400), (stream, 1)]
    assert next_turn(queue[1:], alone=False, slice_rows=64) == [(second, 300), (stream, 1)]
    assert next_turn([prompt, second], alone=False, slice_rows=64) == [(prompt, 64)]


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 700)), min_size=1, max_size=6),
    slice_rows=st.integers(MIN_SLICE_ROWS, MAX_STEP_ROWS),
)
def test_whatever_waits_something_is_done_and_no_source_in_parts(
    steps: list[tuple[bool, int]], slice_rows: int
) -> None:
    queue = [
        (source if is_source else waiting)(number, rows)
        for number, (is_source, rows) in enumerate(steps)
    ]
    turn = next_turn(queue, alone=len(steps) == 1, slice_rows=slice_rows)
    assert turn
    for step, rows in turn:
        assert 0 < rows <= step.left
        if step.header.kind.is_source:
            assert rows == step.left
