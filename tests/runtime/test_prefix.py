"""Chains name what two conversations have in common, block by block."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.prefix import BLOCK_TOKENS, DIGEST_BYTES, MAX_BLOCKS, chain, common_tokens

tokens = st.lists(st.integers(0, 300_000), max_size=5 * BLOCK_TOKENS)


@given(shared=tokens, one=tokens, other=tokens)
def test_what_is_common_is_really_common(
    shared: list[int], one: list[int], other: list[int]
) -> None:
    left, right = shared + one, shared + other
    common = common_tokens(chain(left), chain(right))
    assert left[:common] == right[:common]
    assert common >= len(shared) // BLOCK_TOKENS * BLOCK_TOKENS
    assert common % BLOCK_TOKENS == 0


def test_the_same_block_behind_another_beginning_is_not_the_same() -> None:
    block = list(range(BLOCK_TOKENS))
    assert common_tokens(chain(block + block), chain([1, *block[1:]] + block)) == 0


def test_a_chain_is_bounded() -> None:
    assert len(chain([1] * (MAX_BLOCKS + 3) * BLOCK_TOKENS)) == MAX_BLOCKS * DIGEST_BYTES
    assert chain([1] * (BLOCK_TOKENS - 1)) == b""
