"""How long a session keeps trying, and when it says that it is no use."""

from __future__ import annotations

import pytest

from mesh.errors import GenerationFailed, LinkClosed, StaleEpoch
from runtime.replay import MAX_FAILED_STEPS, MAX_FRUITLESS_REPLAYS, MAX_PAUSE_S, Rounds


def test_the_first_replay_comes_at_once() -> None:
    assert Rounds().after(StaleEpoch("a device is gone")).pause_s == 0


def test_pauses_grow_and_end_growing() -> None:
    rounds, pauses = Rounds(), []
    for _ in range(MAX_FRUITLESS_REPLAYS):
        rounds = rounds.after(LinkClosed("gone"))
        pauses.append(rounds.pause_s)
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE_S
    assert 15 < sum(pauses) < 60  # longer than any election, shorter than a person's patience


def test_lost_plans_end_in_one_clear_error() -> None:
    rounds = Rounds()
    for _ in range(MAX_FRUITLESS_REPLAYS):
        rounds = rounds.after(StaleEpoch("gone"))
    with pytest.raises(GenerationFailed, match="16 plans in a row were lost"):
        rounds.after(StaleEpoch("gone"))


def test_a_step_that_keeps_failing_ends_in_its_own_words() -> None:
    rounds = Rounds()
    for _ in range(MAX_FAILED_STEPS - 1):
        rounds = rounds.after(GenerationFailed("not finite"))
    with pytest.raises(GenerationFailed, match="not finite"):
        rounds.after(GenerationFailed("not finite"))
