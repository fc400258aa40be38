import pytest

from mesh.ids import PeerId
from mesh.messages import Health
from mesh.suspicion import LocalHealth, check_self, judge, recover, worsen

WITNESS = frozenset({PeerId("c" * 64)})
NOBODY: frozenset[PeerId] = frozenset()


@pytest.mark.parametrize(
    ("silence_s", "confirmed_by", "score", "expected"),
    [
        (0.0, NOBODY, 0, Health.ALIVE),
        (1.49, WITNESS, 0, Health.ALIVE),
        (1.5, NOBODY, 0, Health.SUSPECT),
        (2.99, WITNESS, 0, Health.SUSPECT),
        (3.0, WITNESS, 0, Health.DEAD),
        (3.0, NOBODY, 0, Health.SUSPECT),
        (3.69, NOBODY, 0, Health.SUSPECT),
        (3.7, NOBODY, 0, Health.DEAD),
        (2.9, WITNESS, 1, Health.ALIVE),
        (3.7, NOBODY, 1, Health.SUSPECT),
        (6.0, WITNESS, 1, Health.DEAD),
        (7.4, NOBODY, 1, Health.DEAD),
        (14.9, WITNESS, 4, Health.SUSPECT),
        (15.0, WITNESS, 4, Health.DEAD),
    ],
)
def test_silence_is_judged_by_time_witnesses_and_our_own_health(
    silence_s: float, confirmed_by: frozenset[PeerId], score: int, expected: Health
) -> None:
    assert judge(Health.ALIVE, silence_s, confirmed_by, LocalHealth(score)).health is expected


@pytest.mark.parametrize(
    ("silence_s", "expected"), [(2.9, Health.ALIVE), (3.0, Health.DEAD), (6.0, Health.DEAD)]
)
def test_our_own_health_does_not_matter_where_most_of_the_others_are_sure(
    silence_s: float, expected: Health
) -> None:
    doubtful = LocalHealth(4)
    verdict = judge(Health.ALIVE, silence_s, WITNESS, doubtful, most_hold_it_dead=True)
    assert verdict.health is expected


def test_a_suspicion_for_a_broken_link_is_not_cleared_by_a_short_silence() -> None:
    assert judge(Health.SUSPECT, 0.1, NOBODY, LocalHealth()).health is Health.SUSPECT


def test_the_verdict_names_its_reason() -> None:
    assert judge(Health.SUSPECT, 3.2, WITNESS, LocalHealth()).reason == (
        "silent for 3.20 s, confirmed by cccccccc"
    )
    assert judge(Health.SUSPECT, 8.0, NOBODY, LocalHealth(1)).reason == (
        "silent for 8.00 s, timeouts x2, confirmed by nobody"
    )


@pytest.mark.parametrize(
    ("late_s", "score", "judging"), [(0.1, 0, True), (0.3, 1, True), (1.1, 1, False)]
)
def test_a_late_tick_makes_us_doubt_ourselves_and_a_very_late_one_accuse_nobody(
    late_s: float, score: int, judging: bool
) -> None:
    assert check_self(LocalHealth(), late_s, 100.0) == (
        LocalHealth(score, 100.0 if score else 0.0),
        judging,
    )


def test_doubt_is_bounded_and_decays_with_time() -> None:
    local = LocalHealth()
    for _ in range(10):
        local = worsen(local, 50.0)
    assert local.factor == 5
    assert recover(local, 51.9) == local
    assert recover(local, 52.0) == LocalHealth(3, 52.0)
    assert recover(LocalHealth(), 1e9) == LocalHealth()
