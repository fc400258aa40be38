"""Reliability tests 16 and 17: whatever comes, our error class or nothing, fast and small."""

from __future__ import annotations

import itertools
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.__main__ import FOUND, keep, name_of
from tests.fuzz.targets import TARGETS, inputs, message_types, try_one

INPUTS = 100_000  # of all targets together
MAX_S, MAX_BYTES = 0.010, 8 << 20  # of one input
WEIGHED = 50  # each so-manieth input is weighed too, which takes ten times as long


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_in_our_words(name: str) -> None:
    """Reliability test 16, and 17 for frames: what raises is kept in `found/`."""
    rng = random.Random(name)
    slow: list[tuple[float, bytes]] = []
    for number, data in enumerate(itertools.islice(inputs(name, rng), INPUTS // len(TARGETS))):
        began_s = time.thread_time()
        try:
            try_one(name, data)
        except Exception:
            keep(name, data)
            raise
        if time.thread_time() - began_s > MAX_S:
            slow.append((time.thread_time() - began_s, data))
        if number % WEIGHED == 0:
            assert weight_of(name, data) < MAX_BYTES
    for took_s, data in slow:  # once more: the garbage collector may have come in between
        began_s = time.thread_time()
        try_one(name, data)
        assert time.thread_time() - began_s <= MAX_S, (took_s, keep(name, data))


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_what_a_fuzzer_found_stays_mended(path: Path) -> None:
    try_one(name_of(path), path.read_bytes())


def test_every_message_between_devices_is_among_them() -> None:
    names = {kind.__name__ for kind in message_types()}
    assert {"Hello", "Beat", "Prepare", "Commit", "OpenSession", "HaveReply", "Plan"} <= names
    assert len(names) > 40


def weight_of(name: str, data: bytes) -> int:
    """Peak bytes while one input is read."""
    tracemalloc.start()
    try:
        try_one(name, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
