"""A chosen token on the wire: what goes out comes in, and what no stage sends is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError
from runtime.chosen import LOWEST_LOGPROB, MAX_LOGPROBS, Chosen, from_payload, to_row

TOKENS = st.integers(0, (1 << 31) - 1)
LOGPROBS = st.floats(LOWEST_LOGPROB, 0.0, width=32)


def sent(chosen: Chosen) -> Chosen:
    row = to_row(chosen)
    assert row.shape[0] == 1
    return from_payload(row.numpy().tobytes(), row.shape[1])


@given(token=TOKENS)
def test_a_token_alone_is_one_number(token: int) -> None:
    assert to_row(Chosen(token)).tolist() == [[token]]
    assert sent(Chosen(token)) == Chosen(token)


@given(TOKENS, LOGPROBS, st.lists(st.tuples(TOKENS, LOGPROBS), max_size=MAX_LOGPROBS))
def test_logprobs_come_back_as_they_went(
    token: int, logprob: float, top: list[tuple[int, float]]
) -> None:
    chosen = Chosen(token, logprob, tuple(top))
    assert to_row(chosen).shape == (1, 2 + 2 * len(top))
    assert sent(chosen) == chosen


@pytest.mark.parametrize("width", [0, -1, 3, 5, 2 + 2 * MAX_LOGPROBS + 1, 2 * MAX_LOGPROBS + 4])
def test_a_width_that_no_stage_sends(width: int) -> None:
    with pytest.raises(ProtocolError, match="in pairs"):
        from_payload(bytes(4 * max(width, 0)), width)


def test_a_payload_of_another_length() -> None:
    with pytest.raises(ProtocolError, match="4 numbers are 16 bytes; got 12"):
        from_payload(bytes(12), 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.5, -1e5, float("-inf")])
def test_a_logprob_that_is_none(bad: float) -> None:
    with pytest.raises(ProtocolError, match="a logprob lies between"):
        from_payload(struct.pack("<if", 7, bad), 2)


def test_a_negative_token() -> None:
    with pytest.raises(ProtocolError, match="not negative"):
        from_payload(struct.pack("<i", -1), 1)
    with pytest.raises(ProtocolError, match="not negative"):
        from_payload(struct.pack("<ifif", 1, 0.0, -5, -1.0), 4)


@given(st.binary(max_size=200), st.integers(-3, 60))
def test_any_bytes_are_read_or_refused(data: bytes, width: int) -> None:
    try:
        chosen = from_payload(data, width)
    except ProtocolError:
        return
    assert to_row(chosen).numpy().astype(np.int32).tobytes() == data
