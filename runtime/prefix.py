"""Prompts that begin alike: what one conversation computed, the next one goes on from.

Stages after the first never see a token, so the owner names what a cache holds: a chain of hashes,
one for each whole block of tokens, each hash made of the one before and the block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

BLOCK_TOKENS: Final = 64  # at worst so many tokens of a known prefix are computed again
DIGEST_BYTES: Final = 12  # two conversations of one home never meet by chance
MAX_BLOCKS: Final = 1024  # 12 KB of a message: the first 64 thousand tokens


def chain(tokens: Sequence[int]) -> bytes:
    """The names of all whole blocks of `tokens`, one after the other; at most MAX_BLOCKS."""
    names, last = [], b""
    for first in range(
        0, min(len(tokens) // BLOCK_TOKENS, MAX_BLOCKS) * BLOCK_TOKENS, BLOCK_TOKENS
    ):
        block = np.asarray(tokens[first : first + BLOCK_TOKENS], dtype="<i4").tobytes()
        last = hashlib.blake2b(last + block, digest_size=DIGEST_BYTES).digest()
        names.append(last)
    return b"".join(names)


def common_tokens(one: bytes, other: bytes) -> int:
    """How many tokens two chains begin with in common. A name stands for all blocks before it."""
    low, high = 0, min(len(one), len(other)) // DIGEST_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        place = slice((middle - 1) * DIGEST_BYTES, middle * DIGEST_BYTES)
        low, high = (middle, high) if one[place] == other[place] else (low, middle - 1)
    return low * BLOCK_TOKENS
