"""The exchange behind a short code, side against side in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import PairingFailed
from mesh.identity import Identity
from mesh.spake import CONFIRMATION_BYTES, SPAKE_BYTES, Exchange, Role

NEWCOMER, MEMBER, MIDDLE = (Identity.generate().peer for _ in range(3))


def sides(theirs: str = "123456", mine: str = "123456") -> tuple[Exchange, Exchange]:
    return (
        Exchange(Role.NEWCOMER, theirs, newcomer=NEWCOMER, member=MEMBER),
        Exchange(Role.MEMBER, mine, newcomer=NEWCOMER, member=MEMBER),
    )


def met(one: Exchange, other: Exchange) -> tuple[Exchange, Exchange]:
    one.take(other.message)
    other.take(one.message)
    return one, other


def test_the_same_code_gives_one_key_confirmed_by_both_and_a_seal_each_way() -> None:
    newcomer, member = met(*sides())
    assert newcomer.confirmation != member.confirmation
    member.confirm(newcomer.confirmation)
    newcomer.confirm(member.confirmation)
    assert member.unseal(newcomer.seal(b"kitchen")) == b"kitchen"
    assert newcomer.unseal(member.seal(b"secret")) == b"secret"
    assert len(newcomer.message) == SPAKE_BYTES
    assert len(member.confirmation) == CONFIRMATION_BYTES


def test_a_wrong_code_is_seen_by_the_confirmation_alone() -> None:
    """Test 20: two keys that differ are no error before that."""
    newcomer, member = met(*sides("123457"))
    for one, other in ((newcomer, member), (member, newcomer)):
        with pytest.raises(PairingFailed, match="codes differ"):
            one.confirm(other.confirmation)


def test_a_reflected_message_and_a_reflected_confirmation_are_refused() -> None:
    """Test 20: somebody who knows nothing sends back what came."""
    newcomer, _ = sides()
    with pytest.raises(PairingFailed):
        newcomer.take(newcomer.message)
    newcomer, _ = sides()
    with pytest.raises(PairingFailed):
        newcomer.take(b"B" + newcomer.message[1:])  # with the other side's mark on it
    newcomer, member = met(*sides())
    with pytest.raises(PairingFailed):
        newcomer.confirm(newcomer.confirmation)
    with pytest.raises(PairingFailed):
        member.confirm(member.confirmation)


@pytest.mark.parametrize("swapped", ["newcomer", "member", "both"])
def test_keys_that_one_side_saw_swapped_are_another_exchange(swapped: str) -> None:
    """Test 20: the right code, but TLS ended at somebody in the middle."""
    seen_by_newcomer = MIDDLE if swapped in ("member", "both") else MEMBER
    seen_by_member = MIDDLE if swapped in ("newcomer", "both") else NEWCOMER
    newcomer, member = met(
        Exchange(Role.NEWCOMER, "123456", newcomer=NEWCOMER, member=seen_by_newcomer),
        Exchange(Role.MEMBER, "123456", newcomer=seen_by_member, member=MEMBER),
    )
    with pytest.raises(PairingFailed, match="between the two"):
        member.confirm(newcomer.confirmation)
    with pytest.raises(PairingFailed, match="between the two"):
        newcomer.confirm(member.confirmation)


def test_what_was_sealed_and_changed_is_not_opened() -> None:
    newcomer, member = met(*sides())
    member.confirm(newcomer.confirmation)
    newcomer.confirm(member.confirmation)
    sealed = bytearray(member.seal(b"secret"))
    sealed[0] ^= 1
    with pytest.raises(PairingFailed, match="changed on its way"):
        newcomer.unseal(bytes(sealed))


def test_nothing_is_sealed_before_the_other_side_has_confirmed() -> None:
    """Test 20: our own invariant, and the last one before the secret."""
    _, member = met(*sides())
    with pytest.raises(AssertionError):
        member.seal(b"secret")


@given(st.binary(max_size=SPAKE_BYTES + 1) | st.binary(min_size=32, max_size=32))
def test_any_bytes_are_a_message_or_a_failure_in_words(body: bytes) -> None:
    for message in (body, b"B" + body):
        newcomer, _ = sides()
        try:
            newcomer.take(message)
        except PairingFailed as error:
            assert str(error)  # noqa: PT017 (either outcome is right)
