from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.election import (
    Accept,
    Ask,
    Ballot,
    Candidacy,
    GiveWay,
    Phase,
    Situation,
    StepDown,
    answer,
    answer_yield,
    count,
    delay_s,
    settle,
    stand,
)
from mesh.ids import Epoch, PeerId
from mesh.messages import Beat, Vote, VoteRequest

A, B, C, D, E = (PeerId(digit * 64) for digit in "abcde")


def beat(
    epoch: Epoch | None = None,
    *,
    leads: bool = False,
    has_leader: bool = True,
    followers: int = 1,
    voted: Epoch | None = None,
) -> Beat:
    return Beat(1, 1, epoch, leads, has_leader, voted, followers, 0.0, False, True, ())


def situation(
    ballot: Ballot, beats: Mapping[PeerId, Beat], *, leads: bool = False, me: PeerId = A
) -> Situation:
    return Situation(me, ballot, leads, frozenset((me, *beats)), beats)


ORPHAN = beat(Epoch(3, E), has_leader=False)


@pytest.mark.parametrize(
    ("epoch", "allowed"),
    [
        (Epoch(5, B), False),
        (Epoch(5, C), False),
        (Epoch(6, B), False),
        (Epoch(7, B), False),
        (Epoch(7, C), True),
        (Epoch(8, B), True),
    ],
)
def test_only_counters_above_all_accepted_and_voted_are_accepted(
    epoch: Epoch, allowed: bool
) -> None:
    assert Ballot(Epoch(5, B), Epoch(7, C)).allows(epoch) is allowed


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8), st.sampled_from([A, B, C]))))
def test_no_order_of_votes_and_epochs_accepts_two_leaders_in_one_counter(
    offers: list[tuple[bool, int, PeerId]],
) -> None:
    ballot, accepted = Ballot(), {}
    for is_vote, counter, leader in offers:
        epoch = Epoch(counter, leader)
        if not ballot.allows(epoch):
            continue
        if is_vote:
            ballot = Ballot(ballot.accepted, epoch)
        else:
            assert accepted.setdefault(counter, leader) == leader
            assert counter == max(accepted)
            ballot = Ballot(epoch, ballot.voted)


def test_a_vote_is_refused_while_a_leader_lives() -> None:
    follows = situation(Ballot(Epoch(3, B)), {B: beat(Epoch(3, B), leads=True), C: ORPHAN})
    vote = answer(follows, C, VoteRequest(4, False))
    assert (vote.granted, vote.reason) == (False, "bbbbbbbb leads and is alive")


def test_a_vote_is_refused_to_a_stranger_and_at_an_old_counter() -> None:
    orphan = situation(Ballot(Epoch(3, B), Epoch(4, D)), {C: ORPHAN, D: ORPHAN})
    assert answer(orphan, E, VoteRequest(9, True)).reason == "the candidate is not in my view"
    assert answer(orphan, C, VoteRequest(4, True)).reason == "counter 4 is not above my 4"
    assert answer(orphan, C, VoteRequest(5, True)).granted
    assert answer(orphan, D, VoteRequest(4, True)).granted, "the same vote, asked for again"


def test_an_election_from_delay_to_victory() -> None:
    now = situation(Ballot(Epoch(3, E)), {B: ORPHAN, C: ORPHAN, D: ORPHAN})
    candidacy, action = stand(now, Candidacy(), 10.0, 0.4)
    assert (candidacy.phase, candidacy.until_s, action) == (Phase.WAITING, 10.4, None)
    assert stand(now, candidacy, 10.3, 0.4) == (candidacy, None)
    candidacy, action = stand(now, candidacy, 10.4, 0.4)
    assert isinstance(action, Ask)
    assert action.request == VoteRequest(4, False)
    candidacy = count(candidacy, B, Vote(4, False, True, 3, "granted"))
    assert stand(now, candidacy, 10.41, 0.4)[1] is None, "2 of 4 is no majority"
    candidacy = count(candidacy, C, Vote(4, False, True, 3, "granted"))
    candidacy, action = stand(now, candidacy, 10.41, 0.4)
    assert isinstance(action, Ask)
    assert action.request == VoteRequest(4, True)
    for voter in (B, C):
        candidacy = count(candidacy, voter, Vote(4, False, True, 3, "late pre-vote"))
    assert stand(now, candidacy, 10.42, 0.4)[1] is None, "pre-votes are no votes"
    for voter in (B, C):
        candidacy = count(candidacy, voter, Vote(4, True, True, 4, "granted"))
    candidacy, action = stand(now, candidacy, 10.43, 0.4)
    assert action == Accept(Epoch(4, A), "3 of 4 voted for us")


def test_a_hopeless_try_ends_early_and_the_next_goes_above_what_voters_told() -> None:
    now = situation(Ballot(), {B: ORPHAN, C: ORPHAN})
    candidacy, _ = stand(now, Candidacy(Phase.WAITING, 0.0), 1.0, 0.4)
    for voter in (B, C):
        candidacy = count(candidacy, voter, Vote(candidacy.counter, False, False, 9, "no"))
    candidacy, _ = stand(now, candidacy, 1.01, 0.4)
    assert candidacy.phase is Phase.WAITING
    assert stand(now, candidacy, 2.0, 0.4)[0].counter == 10


def test_votes_that_never_come_end_the_phase() -> None:
    now = situation(Ballot(), {B: ORPHAN})
    candidacy, _ = stand(now, Candidacy(Phase.WAITING, 0.0), 1.0, 0.4)
    assert stand(now, candidacy, 1.49, 0.4)[0].phase is Phase.PRE_VOTE
    assert stand(now, candidacy, 1.5, 0.4)[0].phase is Phase.WAITING


def test_who_hears_a_leader_does_not_stand() -> None:
    now = situation(Ballot(Epoch(9, E)), {B: beat(Epoch(2, B), leads=True)})
    assert stand(now, Candidacy(Phase.VOTE), 1.0, 0.4) == (Candidacy(), None)


def test_delays_lie_in_order_of_ids_and_merit_halves_them() -> None:
    beats = {B: ORPHAN, C: ORPHAN}
    first = delay_s(situation(Ballot(), beats), 0.0, 0.99)
    last = delay_s(situation(Ballot(), {A: ORPHAN, B: ORPHAN}, me=C), 0.0, 0.01)
    assert 0.3 <= first < last <= 0.6
    assert delay_s(situation(Ballot(), beats), 1.0, 0.99) == pytest.approx(first / 2)


def test_a_follower_keeps_its_living_leader_against_a_higher_counter() -> None:
    beats = {B: beat(Epoch(3, B), leads=True), C: beat(Epoch(9, C), leads=True, followers=4)}
    assert settle(situation(Ballot(Epoch(3, B)), beats)) is None


def test_a_device_without_a_leader_takes_the_side_with_more_followers() -> None:
    beats = {
        B: beat(Epoch(4, B), leads=True, followers=1),
        C: beat(Epoch(4, C), leads=True, followers=3),
    }
    action = settle(situation(Ballot(Epoch(3, E)), beats))
    assert isinstance(action, Accept)
    assert action.epoch == Epoch(4, C)


def test_a_counter_too_low_is_not_followed_until_it_rises() -> None:
    beats = {C: beat(Epoch(3, C), leads=True, followers=3)}
    assert settle(situation(Ballot(Epoch(3, E)), beats)) is None


def test_a_leader_goes_above_what_a_seeker_has_promised() -> None:
    own = Ballot(Epoch(3, A))
    seeker = beat(Epoch(2, E), has_leader=False, voted=Epoch(7, D))
    action = settle(situation(own, {B: seeker}, leads=True))
    assert isinstance(action, Accept)
    assert action.epoch == Epoch(8, A)


def test_a_vote_for_us_binds_a_seeker_to_us_and_needs_no_new_counter() -> None:
    seeker = beat(Epoch(2, E), has_leader=False, voted=Epoch(3, A))
    assert settle(situation(Ballot(Epoch(3, A)), {B: seeker}, leads=True)) is None


def test_the_side_with_fewer_followers_gives_way() -> None:
    few = situation(
        Ballot(Epoch(9, A)), {B: beat(Epoch(3, B), leads=True, followers=3)}, leads=True
    )
    assert settle(few) == GiveWay(B, "bbbbbbbb has 3 followers, we have 1")
    followed = situation(
        Ballot(Epoch(3, B)),
        {A: beat(Epoch(9, A), leads=True, followers=1), C: beat(Epoch(3, B))},
        leads=True,
        me=B,
    )
    assert settle(followed) is None
    action = answer_yield(followed, Epoch(9, A))
    assert action is not None
    assert action.epoch == Epoch(10, B)


def test_an_even_heal_goes_to_the_higher_id_and_only_one_side_moves() -> None:
    lower = situation(Ballot(Epoch(2, A)), {B: beat(Epoch(2, B), leads=True)}, leads=True)
    higher = situation(Ballot(Epoch(2, B)), {A: beat(Epoch(2, A), leads=True)}, leads=True, me=B)
    assert isinstance(settle(lower), GiveWay)
    assert settle(higher) is None
    assert answer_yield(lower, Epoch(2, B)) is None, "who gives way itself does not rise"
    raised = answer_yield(higher, Epoch(2, A))
    assert raised is not None
    assert raised.epoch == Epoch(3, B)


def test_a_winner_whose_counter_is_above_already_changes_nothing() -> None:
    higher = situation(Ballot(Epoch(7, B)), {A: beat(Epoch(2, A), leads=True)}, leads=True, me=B)
    assert answer_yield(higher, Epoch(2, A)) is None


def test_a_leader_whose_followers_moved_on_steps_down() -> None:
    beats = {B: beat(Epoch(4, E)), C: beat(Epoch(4, E))}
    assert isinstance(settle(situation(Ballot(Epoch(3, A)), beats, leads=True)), StepDown)


def test_a_leader_with_a_majority_stays_though_a_stranger_has_a_higher_counter() -> None:
    beats = {B: beat(Epoch(3, A)), C: beat(Epoch(9, E))}
    assert settle(situation(Ballot(Epoch(3, A)), beats, leads=True)) is None
