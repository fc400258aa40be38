"""The node's interface, on the simulated network: requests, notices, greetings, bad peers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from apps.sim.clock import run_virtual, virtual_loop
from apps.sim.connection import End
from apps.sim.home import Home
from apps.sim.transport import PORT, SimTransport
from mesh.codec import encode
from mesh.control_link import ControlLink
from mesh.errors import ConfigError, DialTimeout, LinkClosed, NoLeader, RequestFailed, SessionError
from mesh.events import LinkUp, PeerJoined, Refused
from mesh.ids import Address, PeerId
from mesh.limits import MAX_CANDIDATES, MAX_OUTBOX_MESSAGES, MAX_REQUESTS_PER_PEER, PROTOCOL_VERSION
from mesh.messages import Beat, Hello, decode_message, encode_message
from mesh.node import Node
from mesh.state_store import StoredState

STRANGER = PeerId("f" * 64)


def play(scenario: Callable[[Home], Awaitable[None]], devices: int = 2) -> None:
    async def main() -> None:
        home = Home(devices, seed=5)
        home.start()
        await asyncio.sleep(3)
        await scenario(home)
        for device in home.running:
            await device.crash()

    run_virtual(main())


def nodes(home: Home) -> list[Node]:
    return [device.node for device in home.running if device.node is not None]


def stranger(home: Home) -> SimTransport:
    return SimTransport.boot(home.network, "stranger", STRANGER)


async def never_accept(_channel: object) -> None:
    raise AssertionError("nobody dials here")


def hello(peer: PeerId = STRANGER, protocol: int = PROTOCOL_VERSION) -> Hello:
    return Hello(protocol, peer, "stranger", 1, 1, None, None, ())


async def closed(end: End) -> None:
    try:
        while True:
            await end.receive()
    except LinkClosed:
        return


def test_a_request_is_answered_and_refusals_come_in_the_peers_words() -> None:
    async def scenario(home: Home) -> None:
        one, two = nodes(home)

        async def double(peer: PeerId, body: Any) -> Any:
            assert peer in (home[0].peer, home[1].peer)
            if body == 13:
                raise SessionError("13 is not doubled here")
            return 2 * body

        two.on_request("double", double)
        assert await one.request(home[1].peer, "double", 21, timeout_s=1) == 42
        assert await two.request(home[1].peer, "double", 4, timeout_s=1) == 8, "to oneself"
        for asker in (one, two):
            with pytest.raises(RequestFailed, match="13 is not doubled here"):
                await asker.request(home[1].peer, "double", 13, timeout_s=1)
            with pytest.raises(RequestFailed, match="nobody here answers requests on 'halve'"):
                await asker.request(home[1].peer, "halve", 1, timeout_s=1)

    play(scenario)


def test_a_handlers_bug_is_logged_and_answered_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(home: Home) -> None:
        one, two = nodes(home)

        async def buggy(_peer: PeerId, body: Any) -> Any:
            return body["no such key"]

        async def unsendable(_peer: PeerId, _body: Any) -> Any:
            return object()

        two.on_request("buggy", buggy)
        two.on_request("unsendable", unsendable)
        two.on_notice("buggy", buggy)
        with pytest.raises(RequestFailed, match="internal error: KeyError"):
            await one.request(home[1].peer, "buggy", {}, timeout_s=1)
        with pytest.raises(RequestFailed, match="cannot be sent"):
            await one.request(home[1].peer, "unsendable", {}, timeout_s=1)
        await one.notify(home[1].peer, "buggy", {})
        two.subscribe(lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        await asyncio.sleep(5)
        assert one.view.is_here(home[1].peer)

    caplog.set_level(logging.CRITICAL, "mesh")
    play(scenario)


def test_slow_handlers_delay_neither_beats_nor_each_other() -> None:
    async def scenario(home: Home) -> None:
        one, two = nodes(home)

        async def slow(_peer: PeerId, body: Any) -> Any:
            await asyncio.sleep(10)
            return body

        two.on_request("slow", slow)
        since_s = virtual_loop().time()
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(one.request(home[1].peer, "slow", n, timeout_s=20))
                for n in range(MAX_REQUESTS_PER_PEER)
            ]
            await asyncio.sleep(1)
            with pytest.raises(RequestFailed, match="busy with 64 requests of yours"):
                await one.request(home[1].peer, "slow", 0, timeout_s=20)
        assert virtual_loop().time() - since_s < 10.1
        assert [task.result() for task in asked] == list(range(MAX_REQUESTS_PER_PEER))
        assert one.view.is_here(home[1].peer)

    play(scenario)


def test_a_request_that_nobody_answers_ends_in_time() -> None:
    async def scenario(home: Home) -> None:
        one, two = nodes(home)

        async def forever(_peer: PeerId, _body: Any) -> Any:
            await asyncio.Event().wait()

        two.on_request("forever", forever)
        for peer in (home[0].peer, home[1].peer):
            one.on_request("forever", forever)
            with pytest.raises(DialTimeout, match="did not answer 'forever' in 2 s"):
                await one.request(peer, "forever", None, timeout_s=2)
        with pytest.raises(LinkClosed, match="is not here"):
            await one.request(STRANGER, "forever", None, timeout_s=2)

    play(scenario)


def test_a_restart_fails_what_was_asked_of_the_old_process() -> None:
    async def scenario(home: Home) -> None:
        one, two = nodes(home)

        async def forever(_peer: PeerId, _body: Any) -> Any:
            await asyncio.Event().wait()

        two.on_request("forever", forever)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(_fails(one, home[1].peer))
            await asyncio.sleep(0.1)
            await home[1].crash()
            home[1].start()
        assert asked.result() < 1.2

    async def _fails(node: Node, peer: PeerId) -> float:
        since_s = virtual_loop().time()
        with pytest.raises(LinkClosed):
            await node.request(peer, "forever", None, timeout_s=60)
        return virtual_loop().time() - since_s

    play(scenario)


def test_notices_arrive_in_order() -> None:
    async def scenario(home: Home) -> None:
        one, two = nodes(home)
        came: list[Any] = []

        async def listen(_peer: PeerId, body: Any) -> None:
            came.append(body)

        two.on_notice("count", listen)
        for number in range(50):
            await one.notify(home[1].peer, "count", number)
        await asyncio.sleep(0.1)
        assert came == list(range(50))

    play(scenario)


def test_waiting_for_a_view_ends_with_the_view_or_in_time() -> None:
    async def scenario(home: Home) -> None:
        (one, _two) = nodes(home)
        view = await one.wait_for(lambda view: view.leader is not None, timeout_s=0)
        assert len(view.alive) == 2
        with pytest.raises(TimeoutError):
            await one.wait_for(lambda view: len(view.alive) == 9, timeout_s=1)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(one.wait_for(lambda v: len(v.alive) == 1, timeout_s=9))
            await home[1].crash()
        assert waiting.result() == one.view

    play(scenario)


def test_only_the_leader_takes_a_next_epoch_and_the_others_follow() -> None:
    async def scenario(home: Home) -> None:
        leader = next(node for node in nodes(home) if node.view.leads)
        other = next(node for node in nodes(home) if not node.view.leads)
        with pytest.raises(NoLeader):
            other.advance_epoch("I would like to")
        epoch = leader.advance_epoch("a new plan")
        assert leader.view.epoch == epoch
        await other.wait_for(lambda view: view.epoch == epoch and view.leader is not None, 0.1)

    play(scenario)


def test_another_version_is_refused_in_words_once_and_harms_nobody() -> None:
    async def scenario(home: Home) -> None:
        (one, _two) = nodes(home)
        refused: list[Refused] = []
        one.subscribe(lambda e: refused.append(e) if isinstance(e, Refused) else None)
        door = stranger(home)

        async def newer(channel: Any) -> None:
            message = hello(protocol=PROTOCOL_VERSION + 1)
            await channel.send(encode(["Hello", [message.protocol, "whatever came later"]]))

        await door.listen(newer)
        one.hint(Address("stranger", PORT))
        await asyncio.sleep(30)
        assert [event.reason for event in refused] == [
            f"the other device speaks protocol {PROTOCOL_VERSION + 1}, this one "
            f"{PROTOCOL_VERSION}; update the older of the two"
        ]
        assert refused[0].address == Address("stranger", PORT)
        assert len(one.view.alive) == 2

    play(scenario)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\xc1",
        encode("Hello"),
        encode(["Hello", []]),
        encode_message(hello(PeerId("e" * 64))),
        encode_message(Beat(1, 1, None, False, False, None, 1, 0.0, False, True, ())),
    ],
)
def test_a_bad_greeting_closes_the_link_and_the_node_lives(first: bytes) -> None:
    async def scenario(home: Home) -> None:
        end = await stranger(home).dial(Home.address(home[0]))
        await end.send(first)
        await closed(end)
        assert all(not node.view.find(STRANGER) for node in nodes(home))

    play(scenario)


@pytest.mark.parametrize("bad", [b"\xc1", encode(["Nonsense", []]), encode_message(hello())])
def test_a_bad_message_later_closes_the_link_and_the_node_lives(bad: bytes) -> None:
    async def scenario(home: Home) -> None:
        end = await stranger(home).dial(Home.address(home[0]))
        await end.send(encode_message(hello()))
        assert isinstance(decode_message(await end.receive()), Hello)
        await asyncio.sleep(0.1)
        assert nodes(home)[0].view.is_here(STRANGER)
        await end.send(bad)
        await closed(end)
        await asyncio.sleep(5)
        assert not nodes(home)[0].view.is_here(STRANGER)
        assert len(nodes(home)[0].view.alive) == 2

    play(scenario)


def test_who_says_nothing_is_closed_after_the_time_for_hello() -> None:
    async def scenario(home: Home) -> None:
        end = await stranger(home).dial(Home.address(home[0]))
        since_s = virtual_loop().time()
        await closed(end)
        assert virtual_loop().time() - since_s == pytest.approx(5.0, abs=0.1)

    play(scenario)


def test_our_own_address_is_dialled_at_most_once() -> None:
    async def scenario(home: Home) -> None:
        home.network.hosts["alias"] = home.network.hosts["d0"]
        ups: list[LinkUp] = []
        node = nodes(home)[0]
        node.subscribe(lambda e: ups.append(e) if isinstance(e, LinkUp) else None)
        node.hint(Address("alias", PORT))
        await asyncio.sleep(30)
        assert ups == []

    play(scenario)


def test_a_flood_of_hints_keeps_its_bound_and_the_home_its_links() -> None:
    async def scenario(home: Home) -> None:
        node = nodes(home)[0]
        for number in range(1000):
            node.hint(Address(f"10.0.{number // 250}.{number % 250}", PORT))
        await asyncio.sleep(20)
        assert len(node._hints._targets) <= MAX_CANDIDATES
        assert len(node.view.alive) == 2
        since_s = virtual_loop().time()
        await home[1].crash()
        await node.wait_for(lambda view: len(view.alive) == 1, timeout_s=1)
        assert virtual_loop().time() - since_s < 1

    play(scenario)


def test_known_peers_are_found_again_without_any_hint() -> None:
    async def scenario(home: Home) -> None:
        await home[0].crash()
        home.devices["d0"].hints = ()
        home[0].start()
        await asyncio.sleep(0.1)
        assert home[0].view.is_here(home[1].peer)

    play(scenario)


@pytest.mark.parametrize("end", ["crash", "power"])
def test_a_peer_that_always_came_to_us_is_looked_for_all_the_same(end: str) -> None:
    async def main() -> None:
        home = Home(2, seed=1)
        home[0].hints, home[1].hints = (), ("d0",)
        home.start()
        await asyncio.sleep(3)
        since_s = virtual_loop().time()
        await {"crash": home[1].crash, "power": home[1].power_off}[end]()
        node = home[0].node
        assert node is not None
        await node.wait_for(lambda view: len(view.alive) == 1, timeout_s=4)
        assert virtual_loop().time() - since_s < (0.1 if end == "crash" else 4.0)
        home[1].hints = ()
        home[1].store.state = StoredState(incarnation=1)
        home[1].start()
        await node.wait_for(lambda view: len(view.alive) == 2, timeout_s=2)

    run_virtual(main())


def test_addresses_spread_by_hearsay() -> None:
    async def main() -> None:
        home = Home(3, seed=1)
        home[0].hints = home[1].hints = ("d2",)
        home[2].hints = ()
        home.start()
        await asyncio.sleep(2)
        assert home[0].view.is_here(home[1].peer)

    run_virtual(main())


def test_a_device_whose_disk_was_set_back_outgrows_its_old_incarnation() -> None:
    async def scenario(home: Home) -> None:
        for _ in range(3):
            await home[0].crash()
            home[0].start()
            await asyncio.sleep(1)
        await home[0].crash()
        home[0].store.state = StoredState()
        home.history.entries.clear()
        home[0].start()
        await asyncio.sleep(2)
        assert home[1].view.is_here(home[0].peer)
        joined = [e for e in home.history.of(PeerJoined) if e.device == "d1"]
        assert joined, "it is known to be a new process"

    play(scenario)


def test_a_full_disk_stops_elections_but_not_the_node() -> None:
    async def scenario(home: Home) -> None:
        (one, _two) = nodes(home)
        leader = next(device for device in home.running if device.view.leads)
        other = next(device for device in home.running if device is not leader)

        def full(_state: StoredState) -> None:
            raise ConfigError("no space left")

        save, other.store.save = other.store.save, full  # type: ignore[method-assign]
        epoch = other.view.epoch
        await leader.crash()
        await asyncio.sleep(5)
        assert other.view.epoch == epoch
        assert other.view.leader is None
        other.store.save = save  # type: ignore[method-assign]
        await asyncio.sleep(2)
        assert other.view.leads

    play(scenario)


class StuckChannel:
    """A peer that reads nothing: `send` never returns until it is closed."""

    peer, remote, dialled = STRANGER, Address("10.0.0.1", 1), True

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.may_send = asyncio.Event()

    async def send(self, data: bytes) -> None:
        await self.may_send.wait()
        self.sent.append(data)

    async def receive(self) -> bytes:
        raise LinkClosed("nothing comes")

    async def close(self, reason: str) -> None:
        pass


async def test_a_peer_that_does_not_read_gets_the_newest_beat_first_and_blocks_only_bulk() -> None:
    channel = StuckChannel()
    link = ControlLink(channel, hello(), 0.0)
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(link.write())
        await link.send(b"first")
        await asyncio.sleep(0)  # the writer takes it, and is stuck with it
        for number in range(MAX_OUTBOX_MESSAGES):
            await link.send(b"bulk")
            link.post_beat(f"beat {number}".encode())
        waiting = tasks.create_task(link.send(b"last"))
        await asyncio.sleep(0)
        assert not waiting.done(), "there is room for no more"
        link.post(b"vote")
        channel.may_send.set()
        await waiting
        await link.drain()
        newest = f"beat {MAX_OUTBOX_MESSAGES - 1}".encode()
        bulk = [b"bulk"] * MAX_OUTBOX_MESSAGES
        assert channel.sent == [b"first", b"vote", newest, *bulk, b"last"]
        writer.cancel()


async def test_who_waits_for_room_learns_that_the_link_closed() -> None:
    link = ControlLink(StuckChannel(), hello(), 0.0)
    for _ in range(MAX_OUTBOX_MESSAGES):
        await link.send(b"bulk")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(_refused(link))
        await asyncio.sleep(0)
        assert not waiting.done()
        await link.close("enough")


async def _refused(link: ControlLink) -> None:
    with pytest.raises(LinkClosed):
        await link.send(b"one more")
