"""Questions about the vocabulary and answers to them, as bytes that somebody may have damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import GenerationFailed, ProtocolError
from planner.plan import Span
from runtime.heads import letters
from runtime.heads.question import Tell, Want, tell

HIDDEN = 6
SPAN = Span(100, 140)


def array(letter: bytes) -> letters.Bytes:
    return np.array(letters.as_rows(letter).numpy().reshape(-1))


@st.composite
def wants(draw: st.DrawFn) -> Want:
    named = np.array(sorted(draw(st.sets(st.integers(90, 150), max_size=20))), dtype=np.int64)
    temperature = draw(st.sampled_from([0.0, 0.5, 1.0]))
    want = Want(draw(st.integers(1, 60)), named, temperature, draw(st.booleans()))
    return want.within(SPAN)


def tells(wanted: list[Want]) -> list[Tell | None]:
    rows = np.random.default_rng(len(wanted)).standard_normal((len(wanted), len(SPAN)))
    return [tell(row.astype(np.float32), SPAN, one) for row, one in zip(rows, wanted, strict=True)]


def is_same(one: Tell, other: Tell) -> bool:
    same = np.array_equal(one.ids, other.ids) and np.array_equal(one.logits, other.logits)
    if one.unknown is None or other.unknown is None:
        return same and one.unknown is other.unknown
    return (
        same
        and one.unknown.bounds == other.unknown.bounds
        and np.array_equal(
            one.unknown.gaps if one.unknown.gaps is not None else [],
            other.unknown.gaps if other.unknown.gaps is not None else [],
        )
        and one.unknown.weight == other.unknown.weight
    )


@given(st.lists(wants(), min_size=1, max_size=4))
@settings(deadline=None)
def test_what_is_written_is_read(wanted: list[Want]) -> None:
    hidden = torch.randn(len(wanted), HIDDEN)
    rows, read = letters.read_question(array(letters.question(hidden, wanted)), HIDDEN, SPAN)
    assert torch.equal(rows, hidden)
    for one, other in zip(read, wanted, strict=True):
        assert np.array_equal(one.named, other.named)
        assert (one.best, one.temperature, one.weight) == (
            other.best,
            other.temperature,
            other.weight,
        )
    told = tells(wanted)
    answer = letters.answer(told, wanted, SPAN)
    assert len(answer) == letters.answer_bytes(wanted, SPAN)
    for got, sent in zip(letters.read_answer(array(answer), wanted, SPAN), told, strict=True):
        assert sent is not None
        assert is_same(got, sent)


@given(st.lists(wants(), min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_damage_is_an_error_or_another_letter(wanted: list[Want], data: st.DataObject) -> None:
    question = bytearray(letters.question(torch.randn(len(wanted), HIDDEN), wanted))
    answer = bytearray(letters.answer(tells(wanted), wanted, SPAN))
    for letter in (question, answer):
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(letter) - 1))
            letter[place] = data.draw(st.integers(0, 255))
    try:
        _, read = letters.read_question(array(bytes(question)), HIDDEN, SPAN)
    except ProtocolError:
        read = []
    assert all(one.best + len(one.named) <= len(SPAN) for one in read)
    try:
        told = letters.read_answer(array(bytes(answer)), wanted, SPAN)
    except (ProtocolError, GenerationFailed):
        told = []
    assert all(np.isfinite(one.logits).all() for one in told)
    assert all(token in SPAN for one in told for token in one.ids)


def test_a_question_that_claims_more_than_it_holds() -> None:
    none = np.empty(0, dtype=np.int64)
    letter = bytearray(letters.question(torch.randn(1, HIDDEN), [Want(1, none)]))
    letter[:4] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(ProtocolError, match="ends after"):
        letters.read_question(array(bytes(letter)), HIDDEN, SPAN)


def test_a_long_letter_goes_in_lines() -> None:
    rows = letters.as_rows(bytes(range(256)) * 40)
    assert rows.shape == (3, letters.LINE_BYTES)
    assert bytes(rows.numpy().tobytes())[: 256 * 40] == bytes(range(256)) * 40
