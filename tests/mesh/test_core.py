"""The core as a whole, driven by hand: what one node alone must get right."""

from __future__ import annotations

from dataclasses import replace

from mesh.core import Core
from mesh.effects import Cut, Effect, Emit
from mesh.events import PeerDied, PeerSuspected
from mesh.ids import Address, Epoch, PeerId
from mesh.messages import Beat, Health, Hello, Sighting, Vote
from mesh.state_store import MemoryStore

ME, YOU, THIRD = (PeerId(digit * 64) for digit in "abc")
HERE = Address("10.0.0.1", 8478)
THERE = Address("10.0.0.2", 8478)
BEAT = Beat(1, 1, None, False, False, None, 1, 0.0, False, True, ())


def hello(peer: PeerId = YOU) -> Hello:
    return Hello(1, peer, "you", 1, 1, THERE, None, ())


def started() -> Core:
    core = Core(ME, "me", MemoryStore(), lambda: 0.5, 0.5)
    core.start(0.0, HERE)
    core.take_hello(hello(), THERE, 0.0)
    core.take_beat(hello(), THERE, BEAT, 0.1)
    core.take_effects()
    return core


def deaths(effects: list[Effect]) -> list[PeerId]:
    return [
        effect.event.peer
        for effect in effects
        if isinstance(effect, Emit) and isinstance(effect.event, PeerDied)
    ]


def test_waking_from_sleep_accuses_nobody() -> None:
    core = started()
    core.tick(60.0, late_s=59.5)
    core.tick(60.25, late_s=0.0)
    effects = core.take_effects()
    assert deaths(effects) == []
    assert not any(isinstance(e, Emit) and isinstance(e.event, PeerSuspected) for e in effects)


def test_silence_without_sleep_is_death_and_cuts_the_link() -> None:
    core = started()
    core.tick(1.7, 0.0)
    core.tick(3.9, 0.0)
    effects = core.take_effects()
    assert deaths(effects) == [YOU]
    assert [effect.peer for effect in effects if isinstance(effect, Cut)] == [YOU]


def test_a_beat_of_one_who_holds_us_dead_keeps_it_not_alive() -> None:
    core = started()
    dead = (Sighting(ME, "me", core.hello().incarnation, Health.DEAD, None),)
    for number in range(2, 20):
        at_s = number / 4
        core.take_beat(hello(), THERE, replace(BEAT, sequence=number, sightings=dead), at_s)
        core.tick(at_s, 0.0)
    assert deaths(core.take_effects()) == [YOU]


def test_a_leader_that_slept_counts_no_followers_until_they_speak() -> None:
    core = started()
    epoch = Epoch(1, ME)
    at_s = 0.0
    while not core.view.leads and at_s < 10:
        at_s += 0.1
        core.take_beat(hello(), THERE, replace(BEAT, sequence=int(at_s * 10) + 2), at_s)
        core.wake(at_s)
        for effect in core.take_effects():
            request = getattr(getattr(effect, "message", None), "binding", None)
            if request is not None:
                message = effect.message  # type: ignore[union-attr]
                _grant(core, message.counter, message.binding, at_s)
    assert core.view.epoch == epoch
    follows = replace(BEAT, sequence=900, epoch=epoch, has_leader=True)
    core.take_beat(hello(), THERE, follows, at_s)
    assert core.beat().followers == 2
    core.tick(at_s + 6, late_s=6.0)
    assert core.beat().followers == 1
    core.take_beat(hello(), THERE, replace(follows, sequence=901), at_s + 6)
    assert core.beat().followers == 2


def _grant(core: Core, counter: int, binding: bool, at_s: float) -> None:
    core.take_vote(YOU, Vote(counter, binding, True, 0, "granted"), at_s)


def test_nobody_listening_at_its_address_settles_a_death_at_once() -> None:
    core = started()
    core.link_lost(YOU, "reset", 0.2)
    core.refused(THERE, 0.21)
    assert deaths(core.take_effects()) == [YOU]


def test_a_loop_that_was_blocked_for_five_seconds_doubts_itself_and_accuses_nobody() -> None:
    """Test 5: its score rises, its next beat tells how late it was, and beats that waited in the
    meantime are heard before anybody is judged.
    """
    core = started()
    core.tick(5.35, late_s=5.0)
    core.take_beat(hello(), THERE, replace(BEAT, sequence=2), 5.36)
    core.tick(5.6, late_s=0.0)
    effects = core.take_effects()
    assert deaths(effects) == []
    assert not any(isinstance(e, Emit) and isinstance(e.event, PeerSuspected) for e in effects)
    assert core.local_health.score == 1
    assert core.beat().loop_lag_s == 5.0


def test_an_accusation_that_turns_out_wrong_makes_us_doubt_ourselves() -> None:
    core = started()
    core.tick(1.7, 0.0)
    core.take_beat(hello(), THERE, replace(BEAT, sequence=2), 1.8)
    assert core.local_health.score == 1


def test_a_device_whose_work_is_stuck_is_degraded_and_stays_a_member() -> None:
    core = started()
    core.take_beat(hello(), THERE, replace(BEAT, sequence=2, stuck=True), 0.5)
    assert core.view.degraded == {YOU}
    assert core.view.is_here(YOU)
    core.take_beat(hello(), THERE, replace(BEAT, sequence=3), 1.0)
    assert core.view.degraded == frozenset()
    core.is_stuck = True
    core.tick(1.1, 0.0)
    assert core.view.degraded == {ME}
    assert core.beat().stuck
