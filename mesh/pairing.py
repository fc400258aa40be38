"""The join code: the mesh secret as a person reads, types and dictates it.

    7Q4M2-9XKCB-...      six groups of five, Crockford's base32: no I, L, O or U to mistake

The last four characters are a Reed-Solomon check over the field of 32 elements. Any four wrong
characters are noticed; one wrong character, or two neighbours swapped, is even found, so the error
can say where to look. O reads as 0, I and L as 1; case, spaces and dashes do not matter.

Short codes over SPAKE2 will live beside this one; they are told apart by their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from mesh.errors import BadId

SECRET_BYTES = 16
GROUP_CHARS = 5

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_SEPARATORS = " -\t\r\n_"
_DATA_CHARS = 26  # 130 bits: the secret and two zero bits, kept free for another kind of code
_CHECK_CHARS = 4
_CODE_CHARS = _DATA_CHARS + _CHECK_CHARS
_SPARE_BITS = 5 * _DATA_CHARS - 8 * SECRET_BYTES


def format_join_code(secret: bytes) -> str:
    """The code of a secret of 16 bytes."""
    assert len(secret) == SECRET_BYTES
    number = int.from_bytes(secret, "big") << _SPARE_BITS
    data = [number >> 5 * place & 31 for place in reversed(range(_DATA_CHARS))]
    text = "".join(_ALPHABET[value] for value in data + _check_of(data))
    return "-".join(text[at : at + GROUP_CHARS] for at in range(0, _CODE_CHARS, GROUP_CHARS))


def parse_join_code(text: str) -> bytes:
    """The secret; raises BadId that says where the code looks wrong, if that can be known."""
    values = [_value(text, place, char) for place, char in _characters(text)]
    if len(values) != _CODE_CHARS:
        raise BadId(_wrong_length(text, len(values)))
    syndromes = _syndromes(values)
    number = int("".join(f"{value:05b}" for value in values[:_DATA_CHARS]), 2)
    if any(syndromes) or number & ((1 << _SPARE_BITS) - 1):
        raise BadId(_mistyped(values, syndromes))
    return (number >> _SPARE_BITS).to_bytes(SECRET_BYTES, "big")


def _characters(text: str) -> Iterator[tuple[int, str]]:
    place = 0
    for char in text:
        if char not in _SEPARATORS:
            yield place, char
            place += 1


def _value(text: str, place: int, char: str) -> int:
    value = _VALUES.get(char.upper())
    if value is None:
        group = place // GROUP_CHARS + 1
        raise BadId(f"a join code never holds {char!r}; look at group {group} of {text[:80]!r}")
    return value


def _wrong_length(text: str, count: int) -> str:
    expected = f"a join code has {_CODE_CHARS} characters in groups of {GROUP_CHARS}; got {count}"
    for number, group in enumerate(text.replace("-", " ").split(), start=1):
        if len(group) != GROUP_CHARS:
            return f"{expected}; group {number}, {group[:20]!r}, has {len(group)}"
    return expected


def _mistyped(values: Sequence[int], syndromes: Sequence[int]) -> str:
    place = _one_wrong(syndromes)
    if place is None:
        place = _swapped(values)
    if place is None:
        return "this join code does not check: more than one character is mistyped"
    group = place // GROUP_CHARS
    found = "".join(_ALPHABET[v] for v in values[group * GROUP_CHARS : (group + 1) * GROUP_CHARS])
    return (
        f"one character of the join code is mistyped, or two are swapped: look at group "
        f"{group + 1}, {found}, character {place % GROUP_CHARS + 1}"
    )


def _one_wrong(syndromes: Sequence[int]) -> int | None:
    """The place of a single wrong character: then each syndrome is the last times the same."""
    if not all(syndromes):
        return None
    ratios = {(_LOG[after] - _LOG[before]) % 31 for before, after in pairwise(syndromes)}
    if len(ratios) != 1:
        return None
    place = _CODE_CHARS - 1 - ratios.pop()
    return place if place >= 0 else None


def _swapped(values: Sequence[int]) -> int | None:
    for place in range(_CODE_CHARS - 1):
        swapped = list(values)
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        if not any(_syndromes(swapped)):
            return place
    return None


# Arithmetic in the field of 32 elements, x^5 + x^2 + 1; 2 generates it.


def _powers() -> list[int]:
    powers = [1]
    while len(powers) < 31:
        power = powers[-1] << 1
        powers.append(power ^ 0b100101 if power & 32 else power)
    return powers


_EXP = _powers()
_LOG = {value: power for power, value in enumerate(_EXP)}


def _times(left: int, right: int) -> int:
    return _EXP[(_LOG[left] + _LOG[right]) % 31] if left and right else 0


def _syndromes(values: Sequence[int]) -> list[int]:
    """The code's polynomial at the generator's roots 2^0 .. 2^3: all zero for a right code."""
    found = []
    for power in range(_CHECK_CHARS):
        total = 0
        for value in values:
            total = _times(total, _EXP[power]) ^ value
        found.append(total)
    return found


def _generator() -> list[int]:
    """The product of (x - 2^k), highest power first."""
    product = [1]
    for power in range(_CHECK_CHARS):
        shifted = [*product, 0]
        for place, factor in enumerate(product):
            shifted[place + 1] ^= _times(factor, _EXP[power])
        product = shifted
    return product


_GENERATOR = _generator()


def _check_of(data: Sequence[int]) -> list[int]:
    """The remainder of data * x^4 by the generator."""
    rest = [*data, *([0] * _CHECK_CHARS)]
    for place in range(len(data)):
        factor = rest[place]
        for offset, term in enumerate(_GENERATOR):
            rest[place + offset] ^= _times(factor, term)
    return rest[len(data) :]
