"""Test 7 in simulated homes: who says goodbye hands over first, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from apps.planning.handover import HAND_OVER_S
from apps.sim.home import Device, Home
from apps.sim.seeds import Theatre
from apps.sim.talk import Talk
from mesh.events import PeerDied, PeerSuspected
from tests.sim.test_whole import answers, leader_of, now_s, play

LONG = 0  # a prompt whose text takes a while


def in_plan(home: Home) -> list[Device]:
    """The devices of the plan in force, in the order of its stages."""
    return [home.devices[name] for name in home.history.said("plan")[-1]["devices"]]


def spoken_for(home: Home, besides: list[Device]) -> Device:
    """One of the others, at which somebody asks."""
    return next(device for device in home.running if device not in besides)


def replayed(home: Home, since_s: float) -> list[int]:
    return [line["replayed_tokens"] for line in home.history.said("resumed", since_s=since_s)]


def said_by(home: Home, device: Device, kind: str) -> list[dict[str, Any]]:
    return [line for line in home.history.said(kind) if line["device"] == device.name]


@pytest.mark.parametrize("leads", [False, True], ids=["a follower", "the leader"])
def test_a_goodbye_in_mid_generation_costs_no_token(theatre: Theatre, leads: bool) -> None:
    async def scenario(home: Home, talk: Talk) -> None:
        leader = leader_of(home)
        talk.begin(leader, LONG, 2)  # so that there is a plan
        await talk.over(20)
        leaver = next(one for one in in_plan(home) if (one is leader) == leads)
        talk.begin(spoken_for(home, [leaver]), LONG)
        await asyncio.sleep(0.4)
        since_s = now_s()
        await leaver.leave()
        assert now_s() - since_s < HAND_OVER_S
        await talk.over(20)
        assert [one["error"] for one in answers(home)] == [None, None]
        assert replayed(home, since_s)
        assert set(replayed(home, since_s)) == {0}
        assert not home.history.of(PeerDied, PeerSuspected, since_s=since_s)

    play(theatre, scenario, 4, 0.6)


def test_two_that_leave_at_the_same_time(theatre: Theatre) -> None:
    async def scenario(home: Home, talk: Talk) -> None:
        talk.begin(home[0], LONG, 2)
        await talk.over(20)
        leavers = in_plan(home)[:2]
        talk.begin(spoken_for(home, leavers), LONG)
        await asyncio.sleep(0.4)
        since_s = now_s()
        await asyncio.gather(*(leaver.leave() for leaver in leavers))
        await talk.over(20)
        assert [one["error"] for one in answers(home)] == [None, None]
        assert set(replayed(home, since_s)) == {0}
        assert not home.history.of(PeerDied, since_s=since_s)

    play(theatre, scenario, 5, 0.6)


@pytest.mark.parametrize("who", ["the leaver", "a taker", "the leader"])
@pytest.mark.parametrize("point", ["share.prepared", "plan.prepared", "share.committed"])
def test_somebody_dies_in_the_middle_of_it(theatre: Theatre, who: str, point: str) -> None:
    """The text goes on, by a replay if it must; nobody waits for the dead."""

    async def scenario(home: Home, talk: Talk) -> None:
        leader = leader_of(home)
        talk.begin(leader, LONG, 2)
        await talk.over(20)
        before = in_plan(home)
        leaver = next(one for one in before if one is not leader)
        owner = spoken_for(home, [leaver, leader])
        talk.begin(owner, LONG)
        await asyncio.sleep(0.4)
        takers = [one for one in home.running if one not in (leaver, leader, owner)]
        dying = {"the leaver": [leaver], "a taker": takers, "the leader": [leader]}[who]
        for device in home.running:
            device.at[point] = die_all(home, dying)
        leaving = asyncio.ensure_future(leaver.leave())
        await asyncio.wait([leaving], timeout=HAND_OVER_S + 2)
        await talk.over(30)
        answered = [one for one in answers(home) if one["device"] == owner.name]
        assert [one["error"] for one in answered] == [None]

    play(theatre, scenario, 5, 0.6)


def die_all(home: Home, dying: list[Device]) -> Callable[[], None]:
    """The first of them dies, wherever the point was reached; one that reached it, at once."""

    def happens() -> None:
        for device in home.devices.values():
            device.at.clear()
        home.spawn(dying[0].crash())

    return happens


def test_who_owns_a_conversation_takes_it_along(theatre: Theatre) -> None:
    """Its clients go with it, so it waits for nothing."""

    async def scenario(home: Home, talk: Talk) -> None:
        talk.begin(home[0], LONG, 2)
        await talk.over(20)
        leaver = in_plan(home)[0]
        talk.begin(leaver, LONG)
        await asyncio.sleep(0.4)
        since_s = now_s()
        await leaver.leave()
        assert now_s() - since_s < 1.0
        await asyncio.sleep(2)
        assert not [one for one in answers(home, since_s) if one["device"] != leaver.name]

    play(theatre, scenario, 4, 0.6)


def test_where_the_others_cannot_do_it_alone_it_goes_at_once(theatre: Theatre) -> None:
    async def scenario(home: Home, talk: Talk) -> None:
        talk.begin(home[0], LONG, 2)
        await talk.over(20)
        leaver = next(one for one in in_plan(home) if one is not home[0])
        talk.begin(home[0], LONG)
        await asyncio.sleep(0.4)
        since_s = now_s()
        await leaver.leave()
        assert now_s() - since_s < 1.0
        await talk.over(20)
        assert "does not fit" in answers(home)[-1]["error"]

    play(theatre, scenario, 2, 0.6)
