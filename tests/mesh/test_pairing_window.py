import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadId, PairingFailed
from mesh.limits import PAIRING_TRIES, PAIRING_WINDOW_S
from mesh.pairing_window import (
    SHORT_CODE_DIGITS,
    PairingWindow,
    is_short_code,
    new_short_code,
    parse_short_code,
)
from mesh.trust import MeshSecret


def test_a_new_code_is_six_digits_and_another_each_time():
    codes = {new_short_code() for _ in range(50)}
    assert all(len(code) == SHORT_CODE_DIGITS and code.isdigit() for code in codes)
    assert len(codes) > 40


@pytest.mark.parametrize("text", ["012345", " 012 345\n", "012-345"])
def test_a_code_reads_as_people_write_it(text):
    assert is_short_code(text)
    assert parse_short_code(text) == "012345"


def test_short_and_long_codes_are_told_apart_by_their_length():
    assert not is_short_code(MeshSecret.new().join_code)
    assert not is_short_code("12345")


@pytest.mark.parametrize("text", ["12345", "1234567", "12345O", "", "١٢٣٤٥٦"])
def test_what_is_no_code_is_said_so(text):
    with pytest.raises(BadId, match="6 digits"):
        parse_short_code(text)


@given(st.text(max_size=12))
def test_any_text_is_six_digits_or_a_bad_id(text):
    try:
        assert parse_short_code(text).isdigit()
    except BadId as error:
        assert str(error)  # noqa: PT017 (either outcome is right)


def test_three_tries_and_it_is_locked_even_for_the_right_code():
    """Test 20: wrong code 3x."""
    window = PairingWindow("123456", 0.0)
    for _ in range(PAIRING_TRIES):
        assert window.closed is None
        window.begin(1.0)
        window.ended()
    with pytest.raises(PairingFailed, match="wrong 3 times, so it is locked.*potluck invite"):
        window.begin(2.0)


def test_a_window_is_over_after_two_minutes():
    """Test 20: window over."""
    window = PairingWindow("123456", 10.0)
    window.begin(10.0 + PAIRING_WINDOW_S - 0.001)
    window.ended()
    with pytest.raises(PairingFailed, match="over"):
        window.begin(10.0 + PAIRING_WINDOW_S)


def test_two_at_once_are_one_and_a_refusal_that_costs_no_try():
    """Test 20: two at once."""
    window = PairingWindow("123456", 0.0)
    window.begin(0.0)
    with pytest.raises(PairingFailed, match="another device is being let in"):
        window.begin(0.0)
    assert window.tries_left == PAIRING_TRIES - 1
    window.ended()
    window.begin(0.0)


def test_a_code_lets_one_device_in():
    window = PairingWindow("123456", 0.0)
    window.begin(0.0)
    window.succeeded()
    assert not window.over, "it is still being let in"
    window.ended()
    assert window.over
    with pytest.raises(PairingFailed, match="good for one"):
        window.begin(0.0)


def test_the_first_reason_to_close_is_the_one_that_is_told():
    window = PairingWindow("123456", 0.0)
    window.close("a new code was asked for")
    window.close("something else")
    assert window.closed == "a new code was asked for"
