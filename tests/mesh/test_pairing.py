import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mesh.errors import BadId
from mesh.pairing import format_join_code, parse_join_code

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
secrets = st.binary(min_size=16, max_size=16)
places = st.integers(0, 29)


def replaced(code: str, place: int, char: str) -> str:
    """The code with its character number `place`, dashes not counted, replaced."""
    at = place + place // 5
    return code[:at] + char + code[at + 1 :]


@given(secrets)
def test_a_code_reads_back(secret):
    code = format_join_code(secret)
    assert [len(group) for group in code.split("-")] == [5] * 6
    assert parse_join_code(code) == secret


@given(secrets, st.randoms())
def test_case_dashes_spaces_and_lookalikes_are_forgiven(secret, random):
    looks = {"0": "0Oo", "1": "1IiLl"}
    typed = "".join(
        random.choice(looks.get(char, char + char.lower())) + random.choice(["", " ", "-"])
        for char in format_join_code(secret).replace("-", "")
    )
    assert parse_join_code(f" {typed}\n") == secret


@given(secrets, places, st.sampled_from(ALPHABET))
def test_one_wrong_character_is_found_and_its_group_named(secret, place, char):
    code = format_join_code(secret)
    wrong = replaced(code, place, char)
    assume(wrong != code)
    group = wrong.split("-")[place // 5]
    with pytest.raises(BadId, match=f"look at group {place // 5 + 1}, {group}"):
        parse_join_code(wrong)


@given(secrets, st.integers(0, 28))
def test_neighbours_swapped_are_found(secret, place):
    code = format_join_code(secret)
    plain = code.replace("-", "")
    assume(plain[place] != plain[place + 1])
    wrong = plain[:place] + plain[place + 1] + plain[place] + plain[place + 2 :]
    with pytest.raises(BadId, match=f"swapped: look at group {place // 5 + 1}"):
        parse_join_code(wrong)


@given(secrets, st.lists(places, min_size=2, max_size=4, unique=True), st.data())
def test_up_to_four_wrong_characters_are_never_accepted(secret, wrong, data):
    code = format_join_code(secret)
    for place in wrong:
        right = code.replace("-", "")[place]
        code = replaced(code, place, data.draw(st.sampled_from(ALPHABET.replace(right, ""))))
    with pytest.raises(BadId, match="mistyped"):
        parse_join_code(code)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda code: "", "30 characters .* got 0"),
        (lambda code: code[:-1], "got 29; group 6, '.{4}', has 4"),
        (lambda code: code[:7] + "7" + code[7:], "got 31; group 2, '.{6}', has 6"),
        (lambda code: code[:12] + "U" + code[13:], "never holds 'U'; look at group 3"),
        (lambda code: code[:0] + "é" + code[1:], "never holds 'é'; look at group 1"),
        (lambda code: code.replace("-", "")[1:], "groups of 5; got 29"),
    ],
)
def test_what_can_be_known_about_a_wrong_code_is_said(change, said):
    with pytest.raises(BadId, match=said):
        parse_join_code(change(format_join_code(bytes(range(16)))))


@given(st.text(max_size=60))
def test_any_text_is_a_secret_or_a_bad_id(text):
    try:
        assert len(parse_join_code(text)) == 16
    except BadId as error:
        assert str(error)  # noqa: PT017 (either outcome is right)
