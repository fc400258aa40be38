"""Tensor links over loopback: everything once and in order, whatever happens to the connections."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import LinkClosed, ProtocolError, StaleEpoch
from mesh.identity import Identity
from mesh.ids import PeerId
from mesh.limits import (
    ACK_DELAY_S,
    FRAMES_IN_FLIGHT,
    FRAMES_PER_ACK,
    MAX_HEADER_BYTES,
    MAX_PROBE_BYTES,
    MAX_TENSOR_FRAME_BYTES,
    MAX_TENSOR_PEERS,
    TENSOR_TILE_BYTES,
)
from mesh.net.direct import DirectWebsocket
from mesh.net.receive_stream import ReceiveStream
from mesh.net.send_stream import SendCounts, SendStream
from mesh.net.server import WebsocketServer
from mesh.net.stream_messages import MAX_STREAM_MESSAGE_BYTES, PREFIX_BYTES
from mesh.net.tensor_links import TENSOR_ROUTE, TensorLinks
from mesh.tensor_frame import Kind, encode_header
from mesh.trust import MeshSecret, MeshTrust
from tests.mesh.home import LOOPBACK, Device, Relay, device, header, link_up

SECRET = MeshSecret.new()
START_BYTES = 16
TLS_RECORD_BYTES = 16384
TLS_OVERHEAD_BYTES = 22  # per record, in TLS 1.3 with AES-GCM or ChaCha20


def payload(width: int, position: int) -> memoryview:
    return memoryview(random.Random(position).randbytes(width))


async def send(sender: Device, receiver: Device, width: int, position: int) -> None:
    await sender.links.send(receiver.peer, header(width, position), payload(width, position))


async def dial_tensors(here: Device, there: Device) -> DirectWebsocket:
    """The connection alone, without what TensorLinks makes of it."""
    return await here.dialer.dial(
        there.address, TENSOR_ROUTE, max_bytes=MAX_STREAM_MESSAGE_BYTES, direct=True
    )


@pytest.mark.parametrize("resume", [b"x", bytes(START_BYTES - 1), bytes(START_BYTES + 1)])
async def test_who_wants_to_go_on_at_no_place_is_told_why(resume: bytes):
    async with device(SECRET) as one, device(SECRET) as two:
        await one.links.connect(two.peer, two.address)
        websocket = await dial_tensors(two, one)
        await websocket.send(resume)
        with pytest.raises(LinkClosed, match="a resume message has 16 bytes"):
            await websocket.receive()


def assert_all_once_in_order(receiver: Device, sender: Device, count: int) -> None:
    assert [frame.position for _, frame, _ in receiver.frames] == list(range(count))
    for peer, frame, data in receiver.frames:
        assert peer == sender.peer
        assert data == payload(frame.width, frame.position)


async def test_frames_arrive_once_in_order_both_ways():
    async with device(SECRET) as one, device(SECRET) as two:
        await link_up(one, two)
        await link_up(two, one)
        for number in range(50):
            await send(one, two, 1 + 1000 * number, number)
            await send(two, one, 10, number)
        await two.until(lambda: len(two.frames) == 50)
        await one.until(lambda: len(one.frames) == 50)
        assert_all_once_in_order(two, one, 50)
        assert_all_once_in_order(one, two, 50)
        stats = one.links.stats(two.peer)
        assert (stats.sending, stats.receiving) == (True, True)
        assert (stats.sent_frames, stats.received_frames, stats.resent_frames) == (50, 50, 0)


@pytest.mark.parametrize("width", [2, 2560, 16000, TENSOR_TILE_BYTES])
async def test_a_hop_costs_its_activation_and_at_most_200_bytes(width):
    """Counted on the wire by a relay; beside it, TLS adds 22 bytes per record of 16 KiB."""
    async with device(SECRET) as one, device(SECRET) as two:
        relay = Relay(one.address)
        async with relay.running() as address:
            await link_up(one, two, address)
            await send(one, two, width, 0)
            await two.until(lambda: len(two.frames) == 1)
            before, count = relay.answered_bytes, 20
            for number in range(1, count + 1):
                await send(one, two, width, number)
            await two.until(lambda: len(two.frames) == count + 1)
            per_frame = (relay.answered_bytes - before) / count
        tls = TLS_OVERHEAD_BYTES * (1 + width // TLS_RECORD_BYTES)
        assert per_frame <= width + 200 + max(0, tls - TLS_OVERHEAD_BYTES)
        own = PREFIX_BYTES + len(encode_header(header(width, 1 << 20)))
        assert own + 10 <= 200  # a websocket frame adds at most 10
        assert own - PREFIX_BYTES <= MAX_HEADER_BYTES


@pytest.mark.parametrize("seed", range(8))
async def test_cut_connections_lose_nothing_and_repeat_nothing(seed):
    chance = random.Random(seed)
    async with device(SECRET) as one, device(SECRET) as two:
        relay = Relay(one.address, lambda: int(chance.paretovariate(0.6) * 2000))
        async with relay.running() as address:
            await link_up(one, two, address)
            count = 150
            for number in range(count):
                await send(one, two, chance.choice([1, 700, 3000, 40_000]), number)
            await two.until(lambda: len(two.frames) >= count)
        assert_all_once_in_order(two, one, count)
        assert relay.connections > 1
        sent, received = one.links.stats(two.peer), two.links.stats(one.peer)
        assert sent.sent_frames == received.received_frames == count
        assert sent.sent_bytes == received.received_bytes


async def test_each_frame_is_told_of_once_when_it_has_arrived():
    """Also where the connection was cut meanwhile; the link is busy with one after the other."""
    async with device(SECRET) as one, device(SECRET) as two:
        relay = Relay(one.address)
        told: list[tuple[int, float]] = []
        one.links.on_sent = lambda header, since_s, s: told.append((header.position, s))
        async with relay.running() as address:
            await link_up(one, two, address)
            clock = asyncio.get_running_loop().time
            began_s = clock()
            for number in range(40):
                await send(one, two, 5000, number)
                if number == 17:
                    relay.cut()
            await two.until(lambda: len(two.frames) >= 40)
            while len(told) < 40:
                await asyncio.sleep(0)
        assert [position for position, _ in told] == list(range(40))
        assert all(seconds >= 0 for _, seconds in told)
        assert 0 < sum(seconds for _, seconds in told) <= clock() - began_s


async def test_frames_that_come_one_by_one_are_acknowledged_together(monkeypatch):
    """Also the last of them, before long; and what is measured of the link does not wait."""
    acknowledged: list[bytes] = []
    acknowledgement = ReceiveStream.acknowledgement

    def counted(self: ReceiveStream, now_s: float) -> bytes:
        acknowledged.append(acknowledgement(self, now_s))
        return acknowledged[-1]

    monkeypatch.setattr(ReceiveStream, "acknowledgement", counted)
    async with device(SECRET) as one, device(SECRET) as two:
        told: dict[int, float] = {}
        one.links.on_sent = lambda header, since_s, s: told.update({header.position: s})
        await link_up(one, two)
        count = 4 * FRAMES_PER_ACK + 1
        clock = asyncio.get_running_loop().time
        for number in range(count):
            await send(one, two, 10, number)
            await two.until(lambda number=number: len(two.frames) == number + 1)
        began_s = clock()
        while len(told) < count:
            await asyncio.sleep(0.01)
        assert len(acknowledged) <= 6  # one may come in between, where this machine is slow
        assert clock() - began_s < ACK_DELAY_S + 1.0
        assert told[count - 1] < ACK_DELAY_S / 2


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=FRAMES_IN_FLIGHT))
def test_whatever_a_peer_says_of_its_frames_no_time_is_negative(ages):
    async def run() -> None:
        told: list[float] = []
        stream = SendStream(
            PeerId("b" * 64), SendCounts(), lambda header, since_s, s: told.append(s)
        )
        for number in range(len(ages)):
            await stream.put(header(1, number), memoryview(b"x"))
        packed = b"".join(age.to_bytes(4, "little") for age in ages)
        stream._acknowledge(*stream._read(len(ages).to_bytes(8, "little") + packed))
        assert len(told) == len(ages)
        assert all(seconds >= 0 for seconds in told)

    asyncio.run(run())


async def test_all_connections_cut_again_and_again_while_frames_flow():
    async with device(SECRET) as one, device(SECRET) as two:
        relay = Relay(one.address)
        async with relay.running() as address:
            await link_up(one, two, address)
            for number in range(200):
                await send(one, two, 5000, number)
                if number % 20 == 7:
                    relay.cut()
            await two.until(lambda: len(two.frames) >= 200)
        assert_all_once_in_order(two, one, 200)
        assert one.broken
        assert two.broken


async def test_a_sender_runs_at_most_the_window_ahead():
    async with device(SECRET) as one, device(SECRET) as two:
        await one.links.connect(two.peer, two.address)
        receiver = await dial_tensors(two, one)
        await receiver.send(b"")
        assert len(await receiver.receive()) == START_BYTES
        await one.until_sending(two.peer)
        for number in range(FRAMES_IN_FLIGHT):
            await send(one, two, 100_000, number)
        assert not one.links.send_now(two.peer, header(1, 99), memoryview(b"x"))
        with pytest.raises(LinkClosed, match=r"took no frame for 0.05 s \(its link is up\)"):
            await one.links.send(two.peer, header(1, 99), memoryview(b"x"), timeout_s=0.05)
        ninth = asyncio.ensure_future(send(one, two, 10, FRAMES_IN_FLIGHT))
        for _ in range(FRAMES_IN_FLIGHT):
            await receiver.receive()
        await receiver.send(FRAMES_IN_FLIGHT.to_bytes(8, "little") + bytes(4 * FRAMES_IN_FLIGHT))
        await ninth
        number = (await receiver.receive())[:PREFIX_BYTES]
        assert number == FRAMES_IN_FLIGHT.to_bytes(8, "little")
        await receiver.close("seen enough")


async def test_frames_sent_now_and_later_arrive_in_order():
    """Whatever the socket takes at once, and whoever waits for room."""
    async with device(SECRET) as one, device(SECRET) as two:
        await link_up(one, two)
        now = 0
        for number in range(60):
            width = 1 + 9000 * (number % 7)
            if one.links.send_now(two.peer, header(width, number), payload(width, number)):
                now += 1
            else:
                await send(one, two, width, number)
        await two.until(lambda: len(two.frames) == 60)
        assert_all_once_in_order(two, one, 60)
        assert now >= FRAMES_IN_FLIGHT


async def test_a_payload_may_be_written_again_after_send():
    async with device(SECRET) as one, device(SECRET) as two:
        await link_up(one, two)
        buffer = bytearray(b"a" * 200_000)
        await one.links.send(two.peer, header(len(buffer)), memoryview(buffer))
        buffer[:] = b"b" * len(buffer)
        await two.until(lambda: len(two.frames) == 1)
        assert set(two.frames[0][2]) == {ord("a")}


async def test_a_frame_waits_for_the_receiver_to_dial():
    async with device(SECRET) as one, device(SECRET) as two:
        await one.links.connect(two.peer, two.address)
        for number in range(FRAMES_IN_FLIGHT):
            await send(one, two, 10, number)
        with pytest.raises(LinkClosed, match="has not dialled this device"):
            await one.links.send(two.peer, header(1), memoryview(b"x"), timeout_s=0.01)
        await two.links.connect(one.peer, one.address)
        await two.until(lambda: len(two.frames) == FRAMES_IN_FLIGHT)
        assert_all_once_in_order(two, one, FRAMES_IN_FLIGHT)
        assert one.links.stats(two.peer).resent_frames == 0


async def test_a_forgotten_peer_ends_what_waits_for_it():
    async with device(SECRET) as one, device(SECRET) as two:
        with pytest.raises(LinkClosed, match="not connected"):
            await one.links.send(two.peer, header(1), memoryview(b"x"))
        await one.links.connect(two.peer, two.address)
        for number in range(FRAMES_IN_FLIGHT):
            await send(one, two, 10, number)
        waiting = asyncio.ensure_future(send(one, two, 10, FRAMES_IN_FLIGHT))
        measuring = asyncio.ensure_future(one.links.measure(two.peer))
        await asyncio.sleep(0)
        await one.links.disconnect(two.peer, "its heart has stopped")
        for task in (waiting, measuring):
            with pytest.raises(LinkClosed, match="its heart has stopped"):
                await task
        with pytest.raises(LinkClosed, match="not connected"):
            await send(one, two, 10, 0)
        assert not two.frames


async def test_a_refused_frame_is_passed_over_and_the_others_arrive():
    async with device(SECRET) as one, device(SECRET) as two:
        await link_up(one, two)
        record = two.links.on_frame

        def choosy(peer, frame):
            if frame.header.position == 3:
                raise ProtocolError("the hidden state is 640 wide; 641 came")
            if frame.header.position == 5:
                raise StaleEpoch("epoch 3 is over")
            return record(peer, frame)

        two.links.on_frame = choosy
        for number in range(30):
            await send(one, two, 10, number)
        await two.until(lambda: len(two.frames) == 28)
        assert [frame.position for _, frame, _ in two.frames] == [
            number for number in range(30) if number not in (3, 5)
        ]
        assert two.refused_frames == ["the hidden state is 640 wide; 641 came"]
        stats = two.links.stats(one.peer)
        assert (stats.refused_frames, stats.stale_frames) == (1, 1)
        await one.until(lambda: bool(one.broken))
        assert "641 came" in one.broken[0]


BAD_MESSAGES = [
    b"",
    b"short",
    (0).to_bytes(8, "little"),
    (0).to_bytes(8, "little") + b"\xff\xff" + bytes(300),
    (5).to_bytes(8, "little") + encode_header(header(1)) + b"x",
    (0).to_bytes(8, "little") + encode_header(header(2)) + b"x",
    bytes(MAX_STREAM_MESSAGE_BYTES + 1),
]


@pytest.mark.parametrize("bad", BAD_MESSAGES, ids=range(len(BAD_MESSAGES)))
async def test_garbage_costs_one_connection_and_is_not_asked_for_again(bad):
    """Reliability test 17. A member that breaks the rules: each dial is answered with one message
    of garbage, and ended with a code that says whose fault it is.
    """
    rogue = MeshTrust(Identity.generate(), SECRET)
    asked, codes = [], []
    third = asyncio.Event()

    async def serve(websocket) -> None:
        asked.append(bytes(await websocket.receive()))
        if len(asked) == 3:
            third.set()
        await websocket.send(b"rogue000" + (0).to_bytes(8, "little"))
        number = asked[-1][8:] or bytes(8)
        await websocket.send(number + bad[8:] if bad[:8] == bytes(8) else bad)
        try:
            await websocket.receive()
        finally:
            codes.append(websocket._raw.close_code)

    async def serve_quietly(websocket) -> None:
        try:
            await serve(websocket)
        except LinkClosed:
            return

    server = WebsocketServer(rogue, [LOOPBACK], 0)
    server.route(TENSOR_ROUTE, serve_quietly, max_bytes=1 << 10)
    await server.start()
    async with device(SECRET) as here:
        await here.links.connect(rogue.peer, server.address)
        await third.wait()
        assert asked[:3] == [
            b"",
            b"rogue000" + (1).to_bytes(8, "little"),
            b"rogue000" + (2).to_bytes(8, "little"),
        ]
        assert not here.frames
        assert here.links.stats(rogue.peer).refused_frames >= 2
        assert len(here.refused_frames) >= 2
        if len(bad) <= MAX_STREAM_MESSAGE_BYTES:  # else what was not read resets the connection
            assert set(codes) <= {1003, 1008}  # no message of ours; against the rules
        assert codes
        await server.close()


@pytest.mark.parametrize(
    "start", [b"", b"x" * (START_BYTES + 1), b"rogue000" + (9).to_bytes(8, "little")]
)
async def test_a_wrong_start_of_a_stream_is_redialled_slowly(start):
    rogue = MeshTrust(Identity.generate(), SECRET)
    dials = asyncio.Semaphore(0)

    async def serve(websocket) -> None:
        first = not await websocket.receive()
        right = b"rogue000" + bytes(8) if first else start
        await websocket.send(right)
        dials.release()

    server = WebsocketServer(rogue, [LOOPBACK], 0)
    server.route(TENSOR_ROUTE, serve, max_bytes=1 << 10)
    await server.start()
    async with device(SECRET) as here:
        await here.links.connect(rogue.peer, server.address)
        for _ in range(3):
            await dials.acquire()
        assert not here.links.stats(rogue.peer).received_frames
    await server.close()


@pytest.mark.parametrize(
    "answer", [b"", b"1234567", (77).to_bytes(8, "little"), bytes(8 + 4), (1).to_bytes(8, "little")]
)
async def test_a_wrong_acknowledgement_closes_the_link(answer):
    rogue_trust = MeshTrust(Identity.generate(), SECRET)
    async with device(SECRET) as here, device(SECRET, identity=rogue_trust.identity) as rogue:
        websocket = await dial_tensors(rogue, here)
        await websocket.send(bytes(START_BYTES))
        assert len(await websocket.receive()) == START_BYTES
        await here.links.connect(rogue.peer, rogue.address)
        await here.links.send(rogue.peer, header(1), memoryview(b"x"))
        await websocket.receive()
        await websocket.send(answer)
        with pytest.raises(LinkClosed, match="acknowledge"):
            await websocket.receive()


async def test_a_resume_beyond_what_was_sent_starts_at_the_oldest_frame_kept():
    async with device(SECRET) as one, device(SECRET) as two:
        await one.links.connect(two.peer, two.address)
        await send(one, two, 10, 0)
        stream = one.links._sending(two.peer)
        for resume in (2, (1 << 64) - 1):
            websocket = await dial_tensors(two, one)
            await websocket.send(stream._id + resume.to_bytes(8, "little"))
            assert await websocket.receive() == stream._id + bytes(8)
            assert (await websocket.receive())[:8] == bytes(8)


async def test_a_newer_link_replaces_an_older_one():
    async with device(SECRET) as one, device(SECRET) as two:
        await one.links.connect(two.peer, two.address)
        ends = []
        for _ in range(3):
            end = await dial_tensors(two, one)
            await end.send(b"")
            await end.receive()
            ends.append(end)
        for end in ends[:2]:
            with pytest.raises(LinkClosed):
                await end.receive()
        await one.until_sending(two.peer)
        await send(one, two, 10, 0)
        assert len(await ends[2].receive()) > 10
        assert not one.broken


async def test_a_restarted_sender_is_a_new_stream():
    identity = Identity.generate()
    async with device(SECRET) as two:
        for run in range(2):
            async with device(SECRET, identity=identity) as one:
                await link_up(one, two)
                for number in range(5):
                    await send(one, two, 10, 5 * run + number)
                await two.until(lambda run=run: len(two.frames) == 5 * run + 5)
        assert_all_once_in_order(two, one, 10)


async def test_a_receiver_that_comes_back_gets_nothing_twice():
    async with device(SECRET) as one, device(SECRET) as two:
        await link_up(one, two)
        for number in range(20):
            await send(one, two, 10, number)
            if number % 4 == 1:
                await two.links.disconnect(one.peer)
                await two.links.connect(one.peer, one.address)
        await two.until(lambda: len(two.frames) == 20)
        assert_all_once_in_order(two, one, 20)


async def test_only_admitted_peers_are_sent_to():
    async with device(SECRET) as one, device(SECRET) as two:
        known: set[PeerId] = set()
        one.links.admit = known.__contains__
        with pytest.raises(LinkClosed, match="does not know the caller"):
            await two.dialer.dial(one.address, TENSOR_ROUTE, max_bytes=1)
        await two.links.connect(one.peer, one.address)
        known.add(two.peer)
        await one.links.connect(two.peer, two.address)
        await send(one, two, 10, 0)
        await two.until(lambda: len(two.frames) == 1)


async def test_another_device_at_the_address_gets_no_frames():
    async with device(SECRET) as one, device(SECRET) as two, device(SECRET) as three:
        await one.links.connect(two.peer, three.address)
        await three.links.connect(one.peer, one.address)
        await three.until(lambda: three.links.stats(one.peer).receiving or not three.frames)
        assert not one.links.stats(two.peer).receiving
        await one.links.connect(two.peer, two.address)  # the right address is learned
        await two.links.connect(one.peer, one.address)
        await send(two, one, 10, 0)
        await one.until(lambda: len(one.frames) == 1)


async def test_measuring_sends_few_bytes_and_none_to_the_handler():
    async with device(SECRET) as one, device(SECRET) as two:
        await link_up(one, two)
        measured = await one.links.measure(two.peer)
        assert 0 < measured.round_trip_s < 1
        assert measured.bytes_per_s > 1e6
        assert 0 < measured.frame_s < 0.1
        assert 0 <= measured.byte_s < 1e-6  # of the processor: less than the link takes
        assert 0 <= measured.burst_bytes <= TENSOR_TILE_BYTES / 2
        assert not two.frames
        probed = two.links.stats(one.peer).received_bytes
        assert probed <= MAX_PROBE_BYTES + 200 * 100
        await two.links.disconnect(one.peer)
        await one.links.connect(two.peer, two.address)
        two.links.admit = one.links.admit = lambda peer: False
        with pytest.raises(LinkClosed, match="answered no probe for 0.05 s"):
            await one.links.measure(two.peer, timeout_s=0.05)


async def test_our_own_wrong_frames_never_leave():
    async with device(SECRET) as one, device(SECRET) as two:
        await one.links.connect(two.peer, two.address)
        with pytest.raises(ProtocolError, match="has 10 bytes; the payload has 9"):
            await one.links.send(two.peer, header(10), memoryview(bytes(9)))
        big = MAX_TENSOR_FRAME_BYTES
        with pytest.raises(ProtocolError, match="smaller tiles"):
            await one.links.send(two.peer, header(big), memoryview(bytes(big)))
        assert one.links.stats(two.peer).sent_frames == 0


async def meet_a_bug() -> None:
    async with device(SECRET) as one, device(SECRET) as two:

        def broken(peer, frame):
            raise ZeroDivisionError

        two.links.on_frame = broken
        await link_up(one, two)
        await send(one, two, 10, 0)
        await asyncio.Event().wait()


async def test_a_bug_in_the_handler_is_not_hidden():
    with pytest.raises(ExceptionGroup) as caught:
        await meet_a_bug()
    assert caught.group_contains(ZeroDivisionError)


async def test_a_device_without_a_handler_refuses_frames_in_words():
    async with device(SECRET) as one, device(SECRET) as two:
        bare = TensorLinks(two.server, two.dialer)
        assert not bare.admit(one.peer)
        two.links.on_frame = bare.on_frame
        await link_up(one, two)
        await send(one, two, 10, 0)
        await two.until(lambda: two.refused_frames == ["this device takes no tensor frames yet"])


async def test_peers_of_the_past_are_forgotten():
    async with device(SECRET) as one, device(SECRET) as two:
        for number in range(2 * MAX_TENSOR_PEERS):
            peer = PeerId(f"{number:064x}")
            await one.links.connect(peer, two.address)
            await one.links.disconnect(peer)
        assert len(one.links._links) <= MAX_TENSOR_PEERS


def test_probes_are_a_kind_of_their_own():
    assert Kind.PROBE not in (Kind.TOKENS, Kind.HIDDEN, Kind.CHOSEN)
