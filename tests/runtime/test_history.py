"""What came before, for penalties: the same after a replay, small on the wire, never trusted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadPrompt, ProtocolError
from runtime.history import MAX_HISTORY_BYTES, History

IDS = st.lists(st.integers(0, 300), max_size=60)


def content(history: History, position: int = 1 << 20) -> tuple[list[int], list[int], list[int]]:
    ids, counts = history.generated(position)
    return history.seen(position).tolist(), ids.tolist(), counts.tolist()


@given(prompt=IDS, generated=IDS)
def test_it_counts_what_was_generated_and_knows_what_was_said(
    prompt: list[int], generated: list[int]
) -> None:
    seen, ids, counts = content(History(prompt, generated))
    assert seen == sorted({*prompt, *generated})
    assert ids == sorted(set(generated))
    assert counts == [generated.count(token) for token in ids]


@given(prompt=IDS, generated=IDS, cut=st.integers(0, 60))
def test_a_replay_knows_what_the_lost_device_knew(
    prompt: list[int], generated: list[int], cut: int
) -> None:
    """The owner opens the session anew with the first tokens; the stage chooses the others."""
    known = generated[:cut]
    opened = History.unpack(History(prompt, known).pack())
    for index, token in enumerate(generated[cut:]):
        opened.chose(len(prompt) + len(known) + index, token)
    assert content(opened) == content(History(prompt, generated))


def test_a_step_that_is_computed_again_counts_once() -> None:
    history = History([1, 2], [3])
    history.chose(3, 7)
    history.chose(4, 7)
    history.chose(5, 8)
    history.chose(4, 9)  # the owner went back
    assert content(history) == ([1, 2, 3, 7, 9], [3, 7, 9], [1, 1, 1])


def test_a_step_sees_only_what_stands_before_it() -> None:
    history = History([1])
    history.chose(1, 5)
    history.chose(2, 6)
    assert content(history, 2) == ([1, 5], [5], [1])
    assert content(history, 1) == ([1], [], [])


@given(prompt=IDS, generated=IDS)
def test_it_comes_back_as_it_went(prompt: list[int], generated: list[int]) -> None:
    history = History(prompt, generated)
    assert content(History.unpack(history.pack())) == content(history)


def test_a_long_conversation_fits_a_message() -> None:
    random.seed(1)
    prompt = random.sample(range(262_144), 20_000)
    packed = History(prompt, random.choices(prompt, k=8000)).pack()
    assert len(packed) <= MAX_HISTORY_BYTES


def test_more_than_a_message_holds_is_told_in_words() -> None:
    with pytest.raises(BadPrompt, match="leave the penalties out"):
        History(range(0, 262_144, 4)).pack()


def test_no_bytes_are_no_history() -> None:
    assert content(History.unpack(b"")) == ([], [], [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x01", "ends too early"),
        (b"\x01\x80", "ends within a number"),
        (b"\x02\x01\x00\x00", "ids of a history ascend"),
        (b"\x00\x01\x03\x00", "at least once"),
        (b"\x00\x00\x05", "at least once, and no more"),
        (b"\xff\xff\xff\xff\x7f", "at most"),
        (b"\x03\xff\xff\xff\x7f\xff\xff\xff\x7f\x01\x00", "ids of a history ascend"),
        (bytes(MAX_HISTORY_BYTES + 1), "at most"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_no_owner_sends_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        History.unpack(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        History.unpack(data)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 (either outcome is right)
