from mesh.heartbeat import Beats, hears_us
from mesh.ids import PeerId
from mesh.messages import Beat, Health, Sighting

ME, YOU, THIRD = (PeerId(digit * 64) for digit in "abc")


def beat(sequence: int, incarnation: int = 1, *sightings: Sighting) -> Beat:
    return Beat(sequence, incarnation, None, False, False, None, 1, 0.0, False, True, sightings)


def saw(peer: PeerId, health: Health, incarnation: int = 1) -> Sighting:
    return Sighting(peer, "x", incarnation, health, None)


def test_beats_that_come_twice_or_late_are_refused() -> None:
    beats = Beats().take(YOU, beat(5))
    assert beats is not None
    assert beats.take(YOU, beat(5)) is None
    assert beats.take(YOU, beat(4)) is None
    assert beats.take(YOU, beat(6)) is not None
    assert beats.take(YOU, beat(1, incarnation=2)) is not None, "a new process counts anew"


def test_only_witnesses_who_say_so_of_this_incarnation_confirm() -> None:
    for health, confirms in [
        (Health.ALIVE, False),
        (Health.SUSPECT, True),
        (Health.DEAD, True),
        (Health.LEFT, False),
    ]:
        beats = Beats().take(THIRD, beat(1, 1, saw(YOU, health)))
        assert beats is not None
        assert bool(beats.accusers(YOU, 1, frozenset({ME, YOU, THIRD}))) is confirms
        assert not beats.accusers(YOU, 2, frozenset({THIRD}))
        assert not beats.accusers(YOU, 1, frozenset({ME})), "the dead bear no witness"


def test_a_suspicion_is_no_certainty() -> None:
    for health, sure in [(Health.SUSPECT, False), (Health.DEAD, True)]:
        beats = Beats().take(THIRD, beat(1, 1, saw(YOU, health)))
        assert beats is not None
        assert bool(beats.accusers(YOU, 1, frozenset({THIRD}), of=(Health.DEAD,))) is sure


def test_nobody_confirms_its_own_death() -> None:
    beats = Beats().take(YOU, beat(1, 1, saw(YOU, Health.DEAD)))
    assert beats is not None
    assert not beats.accusers(YOU, 1, frozenset({YOU}))


def test_who_holds_us_dead_does_not_hear_us() -> None:
    assert hears_us(beat(1), ME)
    assert hears_us(beat(1, 1, saw(ME, Health.SUSPECT)), ME)
    assert not hears_us(beat(1, 1, saw(ME, Health.DEAD)), ME)


def test_a_forgotten_peer_is_gone_from_the_latest() -> None:
    beats = Beats().take(YOU, beat(1))
    assert beats is not None
    assert not beats.without(YOU).latest
    assert beats.without(THIRD) is beats
