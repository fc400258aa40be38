"""Who may change the secret, what comes after, and whose offer is taken: tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ProtocolError, RotationRefused
from mesh.ids import PeerId
from mesh.keyring import MAX_GENERATION, Keyring
from mesh.limits import MAX_CONTROL_BYTES, MAX_ROSTER
from mesh.rotation import (
    NewSecret,
    decode_rekey,
    encode_rekey,
    is_majority,
    next_keyring,
    offer_of,
    promise_of,
    take_offer,
)
from mesh.trust import MeshSecret

A, B, C, D, E = (PeerId(char * 64) for char in "12345")
OLD, NEW = MeshSecret.new(), MeshSecret.new()
NOBODY: frozenset[PeerId] = frozenset()


def keyring(*roster: PeerId, generation: int = 1) -> Keyring:
    return Keyring(OLD, generation, frozenset(roster))


def promises(*peers: PeerId, roster: tuple[PeerId, ...] = (), generation: int = 1):
    return {peer: promise_of(keyring(*roster, generation=generation)) for peer in peers}


@pytest.mark.parametrize(
    ("with_us", "roster", "enough"),
    [
        ("A", "A", True),
        ("A", "AB", True),  # of two equal halves the one with the smallest id
        ("B", "AB", False),
        ("AB", "ABC", True),
        ("A", "ABC", False),
        ("AD", "ABCD", True),
        ("BC", "ABCD", False),
        ("CDE", "ABCDE", True),
        ("AB", "ABCDE", False),
    ],
)
def test_a_minority_refuses(with_us: str, roster: str, enough: bool) -> None:
    names = dict(zip("ABCDE", (A, B, C, D, E), strict=True))
    there = frozenset(names[one] for one in with_us)
    assert is_majority(there, frozenset(names[one] for one in roster)) is enough


def test_two_sides_of_a_partition_never_both_may() -> None:
    roster = (A, B, C, D, E)
    for size in range(1, 6):
        here = frozenset(roster[:size])
        for count in range(size + 1):
            for side in itertools.combinations(here, count):
                other = here - set(side)
                assert not (is_majority(frozenset(side), here) and is_majority(other, here))


def test_the_next_keyring_is_for_all_that_anybody_knows_but_the_lost_one() -> None:
    said = promises(B, roster=(A, B, D), generation=4)
    following = next_keyring(keyring(B, C), A, said, frozenset((C,)), NEW, force=True)
    assert following.roster == {A, B, D}
    assert following.generation == 5
    assert following.secret == NEW
    assert following.old == (OLD,)


def test_a_minority_is_told_what_would_help_and_may_insist() -> None:
    with pytest.raises(RotationRefused, match="only 1 of this mesh's 3 .*--without.*--force"):
        next_keyring(keyring(B, C), A, {}, NOBODY, NEW, force=False)
    assert next_keyring(keyring(B, C), A, {}, NOBODY, NEW, force=True).roster == {A, B, C}
    # Without the device that is gone for good, the same side is most of the rest.
    left = next_keyring(keyring(B, C), A, promises(B), frozenset((C,)), NEW, force=False)
    assert left.roster == {A, B}


def test_a_promise_of_somebody_that_is_shut_out_counts_nothing() -> None:
    with pytest.raises(RotationRefused):
        next_keyring(keyring(B, C, D), A, promises(D), frozenset((D,)), NEW, force=False)


def test_a_generation_that_cannot_grow_is_refused_in_words() -> None:
    said = promises(B, generation=MAX_GENERATION)
    with pytest.raises(RotationRefused, match="impossible"):
        next_keyring(keyring(B), A, said, NOBODY, NEW, force=True)


def test_an_offer_is_taken_from_a_member_and_once() -> None:
    mine, offered = keyring(A), Keyring(NEW, 2, frozenset((A, B)))
    taken = take_offer(mine, B, A, offer_of(offered, in_force=True))
    assert (taken.secret, taken.generation, taken.roster) == (NEW, 2, {A, B})
    assert taken.old == (OLD,)
    assert take_offer(taken, B, A, offer_of(offered, in_force=True)) is taken  # again: no change


@pytest.mark.parametrize(
    ("giver", "generation", "roster", "why"),
    [
        (C, 2, (A, B), "no device that this one knows"),
        (A, 1, (A, B), "secret number 1 already"),
        (A, 2, (A, C), "not for this device"),
    ],
)
def test_an_offer_is_refused(
    giver: PeerId, generation: int, roster: tuple[PeerId, ...], why: str
) -> None:
    """Test 21 for the second: an old offer, replayed, changes nothing."""
    offer = offer_of(Keyring(NEW, generation, frozenset(roster)), in_force=True)
    with pytest.raises(RotationRefused, match=why):
        take_offer(keyring(A), B, giver, offer)


@pytest.mark.parametrize(
    "offer",
    [
        NewSecret(2, b"short", b"", True),
        NewSecret(2, bytes(16), b"not ids", True),
        NewSecret(2**40, bytes(16), bytes.fromhex(A + B), True),
        NewSecret(2, bytes(16), bytes(32) + bytes.fromhex(A) + bytes.fromhex(B) + bytes(1), True),
    ],
)
def test_what_is_no_offer_is_a_broken_rule(offer: NewSecret) -> None:
    with pytest.raises((ProtocolError, RotationRefused)):
        take_offer(keyring(A), B, A, offer)


def test_the_largest_roster_fits_a_message() -> None:
    roster = frozenset(PeerId(f"{number:064x}") for number in range(MAX_ROSTER))
    offer = offer_of(Keyring(NEW, MAX_GENERATION, roster), in_force=True)
    assert len(encode_rekey(offer)) <= MAX_CONTROL_BYTES
    assert decode_rekey(encode_rekey(offer)) == offer


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        decode_rekey(data)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 (either outcome is right)
