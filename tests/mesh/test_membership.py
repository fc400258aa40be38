from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import Address, PeerId
from mesh.limits import MAX_INCARNATION, MAX_MEMBERS, MAX_SIGHTINGS
from mesh.membership import (
    ChangeKind,
    Claim,
    Member,
    Membership,
    Outcome,
    bury,
    depart,
    forgive,
    hear,
    learn,
    refute,
    refute_rumour,
    suspect,
)
from mesh.messages import Health, Rumour, Sighting

ME = PeerId("a" * 64)
YOU = PeerId("b" * 64)
ALONE = Membership(Member(ME, "me", 3, Health.ALIVE, None), {})


def claim(incarnation: int = 1, started_as: int = 1, port: int = 1) -> Claim:
    return Claim(YOU, "you", incarnation, started_as, Address("10.0.0.2", port))


def met(incarnation: int = 1) -> Membership:
    return hear(ALONE, claim(incarnation), 10.0)[0]


def kind(outcome: Outcome) -> ChangeKind | None:
    return outcome[1].kind if outcome[1] else None


def test_a_first_sign_of_life_is_a_join_and_a_second_is_nothing() -> None:
    table, change = hear(ALONE, claim(), 10.0)
    assert change is not None
    assert change.kind is ChangeKind.JOINED
    assert table.here == {ME, YOU}
    table, change = hear(table, claim(), 11.0)
    assert change is None
    assert table.records[YOU].heard_s == 11.0


def test_suspects_are_here_the_dead_are_not() -> None:
    table, _ = suspect(met(), YOU, "silent")
    assert table.here == {ME, YOU}
    table, _ = bury(table, YOU, "silent")
    assert table.here == {ME}


def test_a_sign_of_life_clears_a_suspicion() -> None:
    table, _ = suspect(met(), YOU, "silent")
    assert kind(hear(table, claim(), 12.0)) is ChangeKind.REFUTED


def test_the_dead_come_back_only_with_a_higher_incarnation() -> None:
    table, _ = bury(met(4), YOU, "silent")
    assert kind(hear(table, claim(4), 12.0)) is None
    assert kind(hear(table, claim(3), 12.0)) is None
    assert kind(hear(table, claim(5), 12.0)) is ChangeKind.JOINED


def test_a_goodbye_is_final_for_its_incarnation() -> None:
    table, change = depart(met(4), YOU, 4)
    assert change is not None
    assert change.kind is ChangeKind.LEFT
    assert kind(hear(table, claim(4), 12.0)) is None
    assert kind(suspect(table, YOU, "silent")) is None
    assert kind(bury(table, YOU, "silent")) is None
    assert kind(hear(table, claim(5), 12.0)) is ChangeKind.JOINED


def test_an_old_goodbye_ends_nothing() -> None:
    assert kind(depart(met(4), YOU, 3)) is None


def test_a_restart_is_told_from_a_refutation() -> None:
    assert kind(hear(met(1), claim(2, started_as=1), 11.0)) is ChangeKind.UPDATED
    assert kind(hear(met(1), claim(2, started_as=2), 11.0)) is ChangeKind.RESTARTED


def test_a_new_address_is_an_update() -> None:
    assert kind(hear(met(), claim(port=2), 11.0)) is ChangeKind.UPDATED


def test_we_refute_death_and_outgrow_whoever_used_our_name() -> None:
    def said(health: Health, incarnation: int) -> tuple[Sighting, ...]:
        return (Sighting(ME, "me", incarnation, health, None),)

    assert refute(ALONE, said(Health.DEAD, 3)) == 4
    assert refute(ALONE, said(Health.LEFT, 3)) == 4
    assert refute(ALONE, said(Health.DEAD, 2)) is None
    assert refute(ALONE, said(Health.SUSPECT, 3)) is None
    assert refute(ALONE, said(Health.ALIVE, 9)) == 10


def test_an_incarnation_that_nobody_can_have_is_not_outgrown() -> None:
    most = MAX_INCARNATION
    assert refute(ALONE, (Sighting(ME, "me", most + 1, Health.DEAD, None),)) is None
    assert refute(ALONE, (Sighting(ME, "me", most, Health.DEAD, None),)) == most + 1
    told = Rumour(ME, "me", most + 1, 1, Health.DEAD, None, None)
    assert refute_rumour(ALONE, told) is None


def test_in_a_crowd_we_refute_a_suspicion_too() -> None:
    def told(health: Health, incarnation: int) -> Rumour:
        return Rumour(ME, "me", incarnation, 1, health, None, YOU)

    assert refute_rumour(ALONE, told(Health.SUSPECT, 3)) == 4
    assert refute_rumour(ALONE, told(Health.DEAD, 3)) == 4
    assert refute_rumour(ALONE, told(Health.SUSPECT, 2)) is None
    assert refute_rumour(ALONE, told(Health.ALIVE, 3)) is None
    assert refute_rumour(ALONE, told(Health.ALIVE, 9)) == 10


def test_what_others_tell_counts_if_it_is_of_no_older_incarnation() -> None:
    def told(health: Health, incarnation: int) -> Rumour:
        return Rumour(YOU, "you", incarnation, 1, health, None, None)

    assert kind(learn(ALONE, told(Health.ALIVE, 1), 9.0)) is ChangeKind.JOINED
    assert kind(learn(ALONE, told(Health.DEAD, 1), 9.0)) is None, "we never knew it"
    assert kind(learn(met(4), told(Health.DEAD, 3), 12.0)) is None
    assert kind(learn(met(4), told(Health.ALIVE, 4), 12.0)) is None
    assert kind(learn(met(4), told(Health.DEAD, 4), 12.0)) is ChangeKind.DIED
    assert kind(learn(met(4), told(Health.LEFT, 4), 12.0)) is ChangeKind.LEFT
    assert kind(learn(met(4), told(Health.SUSPECT, 5), 12.0)) is ChangeKind.SUSPECTED
    restarted = Rumour(YOU, "you", 5, 5, Health.ALIVE, None, None)
    assert kind(learn(met(4), restarted, 12.0)) is ChangeKind.RESTARTED


def test_time_we_slept_through_is_nobodys_silence() -> None:
    assert forgive(met(), 5.0).records[YOU].heard_s == 15.0


def test_the_longest_gone_are_forgotten_and_the_living_are_not() -> None:
    table = met()
    for number in range(3 * MAX_MEMBERS):
        peer = PeerId(f"{number:064x}")
        table, _ = hear(table, Claim(peer, "x", 1, 1, None), 20.0 + number)
        table, _ = bury(table, peer, "gone")
    assert len(table.records) == 2 * MAX_MEMBERS
    assert YOU in table.here
    assert len(table.sightings()) == MAX_SIGHTINGS
    assert table.sightings()[0].peer == YOU


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hear", "suspect", "bury", "depart"]), st.integers(1, 4), st.integers(1, 4)
    ),
    max_size=30,
)


@given(STEPS)
def test_no_sequence_of_events_resurrects_or_goes_back(
    steps: list[tuple[str, int, int]],
) -> None:
    table, highest, gone = ALONE, 0, 0
    for at, (what, incarnation, started_as) in enumerate(steps):
        match what:
            case "hear":
                said = claim(incarnation, min(incarnation, started_as))
                table, change = hear(table, said, float(at))
            case "suspect":
                table, change = suspect(table, YOU, "x")
            case "bury":
                table, change = bury(table, YOU, "x")
            case _:
                table, change = depart(table, YOU, incarnation)
        if YOU not in table.records:
            continue
        member = table.records[YOU].member
        assert member.incarnation >= highest
        highest = member.incarnation
        if not member.is_here:
            gone = max(gone, member.incarnation)
        else:
            assert member.incarnation > gone
        assert change is None or change.reason
