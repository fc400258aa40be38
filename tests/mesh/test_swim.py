"""Many devices: when all-to-all ends, how long an accusation waits, what is told and how often."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.accusations import Accusations
from mesh.ids import Address, Epoch, PeerId
from mesh.limits import (
    CONFIRMATIONS,
    ELECTORS,
    FEW_AGAIN,
    FEW_MEMBERS,
    MAX_CONTROL_BYTES,
    MAX_LOCAL_HEALTH,
    MAX_MEMBERS,
    MAX_NAME_CHARS,
    MAX_PAGE,
    MAX_RUMOURS,
    MAX_WAITING_RUMOURS,
    NEIGHBOURS,
    PING_TIMEOUT_S,
    RELAY_TIMEOUT_S,
    SUSPICION_S,
    SUSPICION_SPREAD,
)
from mesh.membership import Member, Record
from mesh.messages import Health, News, Page, Rumour, encode_message
from mesh.overlay import electors, neighbours, some
from mesh.pages import digest_of, page_of
from mesh.rumours import Rumours
from mesh.swim import Probe, Step, is_crowd, next_step, suspicion_s, tellings


def peer(number: int) -> PeerId:
    return PeerId(f"{number:064x}")


def rumour(number: int, health: Health = Health.ALIVE, by: int | None = None) -> Rumour:
    accuser = None if by is None else peer(by)
    return Rumour(peer(number), "x", 1, 1, health, None, accuser)


def test_at_the_border_nobody_turns_back_and_forth() -> None:
    assert not is_crowd(FEW_MEMBERS, was_crowd=False)
    assert is_crowd(FEW_MEMBERS + 1, was_crowd=False)
    assert is_crowd(FEW_MEMBERS, was_crowd=True)
    assert not is_crowd(FEW_AGAIN, was_crowd=True)


@pytest.mark.parametrize(
    ("members", "confirmations", "factor", "expected_s"),
    [
        (2, 0, 1, SUSPICION_S * SUSPICION_SPREAD),
        (10, CONFIRMATIONS, 1, SUSPICION_S),
        (100, CONFIRMATIONS, 1, 2 * SUSPICION_S),
        (1000, CONFIRMATIONS, 1, 3 * SUSPICION_S),
        (1000, 0, 1, 3 * SUSPICION_S * SUSPICION_SPREAD),
        (1000, CONFIRMATIONS + 5, 1, 3 * SUSPICION_S),
        (100, CONFIRMATIONS, 5, 10 * SUSPICION_S),
    ],
)
def test_how_long_an_accusation_waits(
    members: int, confirmations: int, factor: int, expected_s: float
) -> None:
    assert suspicion_s(members, confirmations, factor) == pytest.approx(expected_s)


@given(
    st.integers(2, MAX_MEMBERS), st.integers(0, CONFIRMATIONS - 1), st.integers(1, MAX_LOCAL_HEALTH)
)
def test_more_accusers_never_wait_longer_and_ill_health_never_shorter(
    members: int, confirmations: int, factor: int
) -> None:
    waited_s = suspicion_s(members, confirmations, factor)
    assert suspicion_s(members, confirmations + 1, factor) < waited_s
    assert suspicion_s(members, confirmations, factor + 1) > waited_s


def test_an_unanswered_ping_is_others_business_before_it_is_an_accusation() -> None:
    probe = Probe(peer(1), 10.0)
    assert next_step(probe, 9.0, 10.0 + PING_TIMEOUT_S / 2, 1) is Step.WAIT
    assert next_step(probe, 9.0, 10.0 + PING_TIMEOUT_S, 1) is Step.RELAY
    assert next_step(probe, 9.0, 10.0 + PING_TIMEOUT_S, 2) is Step.WAIT
    relayed = Probe(peer(1), 10.0, 10.5)
    assert next_step(relayed, 9.0, 10.5 + RELAY_TIMEOUT_S / 2, 1) is Step.WAIT
    assert next_step(relayed, 9.0, 10.5 + RELAY_TIMEOUT_S, 1) is Step.ACCUSE
    assert next_step(relayed, 10.6, 10.5 + RELAY_TIMEOUT_S, 1) is Step.ANSWERED


def test_the_electors_are_the_same_few_for_all_and_a_leader_stays_one() -> None:
    here = {peer(number) for number in range(500)}
    assert electors(here, ()) == {peer(number) for number in range(ELECTORS)}
    assert peer(321) in electors(here, [peer(321)])
    assert peer(777) not in electors(here, [peer(777)])  # it leads nothing any more


def test_neighbours_stay_while_they_are_here_and_change_one_at_a_time() -> None:
    others = frozenset(peer(number) for number in range(40))
    first = neighbours(frozenset(), others, lambda: 0.5, swap=False)
    assert len(first) == NEIGHBOURS
    assert neighbours(first, others, lambda: 0.5, swap=False) == first
    assert len(first & neighbours(first, others, lambda: 0.5, swap=True)) == NEIGHBOURS - 1
    gone = sorted(first)[0]
    assert gone not in neighbours(first, others - {gone}, lambda: 0.1, swap=False)
    assert neighbours(first, frozenset([peer(3)]), lambda: 0.9, swap=False) == {peer(3)}


def test_a_choice_by_chance_takes_nobody_twice() -> None:
    assert sorted(some([peer(1), peer(2), peer(3)], 9, lambda: 0.99)) == [
        peer(1),
        peer(2),
        peer(3),
    ]


def test_a_rumour_is_told_so_often_and_no_more() -> None:
    rumours = Rumours()
    rumours.add(rumour(1), 3)
    assert [len(rumours.take(5)) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert tellings(1000) > tellings(17) > tellings(2) > 0


def test_the_refutation_takes_the_place_of_all_accusations() -> None:
    rumours = Rumours()
    rumours.add(rumour(1, Health.SUSPECT, by=2), 3)
    rumours.add(rumour(1, Health.SUSPECT, by=3), 3)
    assert len(rumours) == 2
    rumours.add(rumour(1), 3)
    assert [told.health for told in rumours.take(9)] == [Health.ALIVE]


def test_rumours_that_wait_stay_bounded_and_the_newest_is_told_first() -> None:
    rumours = Rumours()
    for number in range(2 * MAX_WAITING_RUMOURS):
        rumours.add(rumour(number), 1)
    assert len(rumours) == MAX_WAITING_RUMOURS
    assert rumours.take(1)[0].peer == peer(2 * MAX_WAITING_RUMOURS - 1)


def test_an_accusation_that_comes_again_is_no_news_and_one_that_was_cleared_starts_anew() -> None:
    accusations = Accusations()
    assert accusations.add(peer(1), 3, peer(7), 10.0)
    assert not accusations.add(peer(1), 3, peer(7), 11.0)
    assert not accusations.add(peer(1), 2, peer(8), 11.0), "of an older incarnation"
    accusations.clear(peer(1))
    assert not accusations.add(peer(1), 3, peer(7), 12.0), "the old rumour, on its way still"
    assert accusations.add(peer(1), 3, peer(8), 20.0)
    ((_, found),) = accusations
    assert (found.since_s, found.by) == (20.0, {peer(8)})


def test_who_looked_again_itself_counts_again() -> None:
    accusations = Accusations()
    accusations.add(peer(1), 3, peer(7), 10.0)
    accusations.clear(peer(1))
    assert accusations.add(peer(1), 3, peer(7), 30.0, anew=True)
    ((_, found),) = accusations
    assert (found.since_s, found.by) == (30.0, {peer(7)})


def test_a_view_of_a_thousand_fits_its_pages_and_no_member_is_left_out() -> None:
    records = {}
    for number in range(1000):
        name, host = "n" * MAX_NAME_CHARS, "2001:db8:1234:5678:9abc:def0:1234:5678"
        member = Member(peer(number), name, 1 << 40, Health.ALIVE, Address(host, 65535))
        records[peer(number)] = Record(member, 1 << 40, 0.0)
    after, told, pages = None, [], 0
    while True:
        page = page_of(records, after)
        assert len(encode_message(page)) <= MAX_CONTROL_BYTES
        told += [rumour.peer for rumour in page.rumours]
        pages, after = pages + 1, told[-1]
        if not page.more:
            break
    assert told == sorted(records)
    assert pages == -(-1000 // MAX_PAGE)
    digest = digest_of(records)
    assert digest == digest_of(dict(reversed(records.items())))
    gone = records[peer(5)]
    records[peer(5)] = replace(gone, member=replace(gone.member, health=Health.DEAD))
    assert digest_of(records) != digest


def test_rumours_with_the_longest_names_fit_one_message() -> None:
    host = "2001:db8:1234:5678:9abc:def0:1234:5678%wlp0s20f3"
    longest = Rumour(
        peer(1), "\U0001f600" * MAX_NAME_CHARS, 1 << 62, 1 << 62, Health.SUSPECT,
        Address(host, 65535), peer(2),
    )  # fmt: skip
    epoch = Epoch(1 << 62, peer(3))
    assert len(encode_message(News((longest,) * MAX_RUMOURS, epoch))) <= MAX_CONTROL_BYTES
    assert len(encode_message(Page((longest,) * MAX_PAGE, True))) <= MAX_CONTROL_BYTES
