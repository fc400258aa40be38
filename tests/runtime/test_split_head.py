"""The vocabulary on several devices: the same tokens as on one, and after whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import PlanError, ProtocolError
from mesh.ids import PeerId
from mesh.tensor_frame import DType, Kind, TensorFrame
from planner.plan import Plan, Share, Span
from runtime.chosen import Chosen
from runtime.heads import question
from runtime.heads.desk import spans_of
from runtime.sampling import Sampling
from runtime.weights import Checkpoint
from tests.runtime.room import Device, Room, altered, make_plan, peer
from tests.runtime.test_several_models import OtherRoad
from tests.runtime.tiny_model import write_tiny_gemma

LAYERS = 4
PROMPT = [2, 17, 40, 41, 99, 7, 3, 250, 12, 60]
TOKENS = 16
SAMPLINGS = [
    Sampling(),
    Sampling(logprobs=3),
    Sampling(1.0, seed=4),
    Sampling(1.0, top_k=20, top_p=0.9, seed=5),
    Sampling(0.9, top_p=0.8, seed=6, logprobs=20),
    Sampling(1.0, None, 0.95, 11, 0.02, 1.2, 0.5, 0.5, ((40, 3.0), (41, -100.0)), 3),
    Sampling(repetition_penalty=1.3),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return Checkpoint.open(Path(write_tiny_gemma(path, layers=LAYERS, seed=1)))


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is small, and the shares are not to tell all of it."""
    monkeypatch.setattr(question, "CANDIDATES", 8)


def cut(plan: Plan, shares: Sequence[tuple[int, int]]) -> Plan:
    """The head of a plan in shares: (device, rows as a part of all)."""
    vocabulary, total, edges = 327, sum(part for _, part in shares), [0]
    for _, part in shares:
        edges.append(edges[-1] + part)
    spans = [Span(first, last) for first, last in zip(edges, edges[1:], strict=False)]
    head = tuple(
        Share(peer(device), vocab=span.scaled(total, vocabulary))
        for (device, _), span in zip(shares, spans, strict=True)
    )
    return replace(plan, head=head)


async def collect(
    room: Room, sampling: Sampling | None = None, tokens: int = TOKENS
) -> list[Chosen]:
    session = room.session(0, PROMPT, tokens, sampling)
    return [one async for one in session.tokens()]


async def undisturbed(
    checkpoint: Checkpoint, sampling: Sampling | None = None, tokens: int = TOKENS
) -> list[Chosen]:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        return await collect(room, sampling, tokens)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize(
    ("cuts", "shares"),
    [
        ((), [(0, 1), (1, 1)]),
        ((), [(1, 1), (0, 3)]),  # the lead has the last rows
        ((2,), [(0, 2), (1, 1), (2, 5)]),  # one device has no layers
        ((2,), [(0, 1), (2, 1), (3, 1)]),  # the lead has no rows
    ],
    ids=str,
)
async def test_the_same_tokens_wherever_the_vocabulary_is(
    checkpoint: Checkpoint,
    cuts: tuple[int, ...],
    shares: list[tuple[int, int]],
    sampling: Sampling,
) -> None:
    expected = await undisturbed(checkpoint, sampling)
    async with Room.of(checkpoint, 4) as room:
        await room.put_up(cut(make_plan(checkpoint, cuts), shares))
        assert await collect(room, sampling) == expected
        assert not room.failures


async def test_several_conversations_share_a_question(checkpoint: Checkpoint) -> None:
    expected = [[one.token for one in await undisturbed(checkpoint, each)] for each in SAMPLINGS]
    asked: list[int] = []

    def count(source: PeerId, to: PeerId, frame: TensorFrame) -> TensorFrame:
        if frame.header.kind is Kind.HEAD_ASK:
            asked.append(int.from_bytes(frame.payload[:4], "little"))
        return frame

    async with Room.of(checkpoint, 2) as room:
        room.tamper = count
        plan = make_plan(checkpoint, (), sessions=len(SAMPLINGS))
        await room.put_up(cut(plan, [(0, 1), (1, 1)]))
        together = await asyncio.gather(*(collect(room, each) for each in SAMPLINGS))
    assert [[one.token for one in each] for each in together] == expected
    assert max(asked) > 1


Spoil = Callable[[TensorFrame], TensorFrame | None]


def spoiling(room: Room, kind: Kind, number: int, spoil: Spoil) -> None:
    """The frame of that kind and number comes otherwise than it was sent."""
    seen = 0

    def tamper(source: PeerId, to: PeerId, frame: TensorFrame) -> TensorFrame | None:
        nonlocal seen
        seen += frame.header.kind is kind
        return spoil(frame) if frame.header.kind is kind and seen == number else frame

    room.tamper = tamper


def payload(data: Callable[[bytearray], None]) -> Spoil:
    def spoil(frame: TensorFrame) -> TensorFrame:
        changed = bytearray(frame.payload)
        data(changed)
        return TensorFrame(frame.header, memoryview(changed))

    return spoil


def _how(to: int) -> Spoil:
    return payload(lambda data: data.__setitem__(0, to))


def _word(word: int, value: bytes) -> Spoil:
    return payload(lambda data: data.__setitem__(slice(4 * word, 4 * word + 4), value))


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (lambda frame: altered(frame, dtype=DType.FLOAT32, width=3), "of FLOAT32 came"),
        (lambda frame: altered(frame, width=frame.header.width + 1), "an answer about"),
        (_how(7), "begins with 0, 1 or 2"),
        (_word(1, (1000).to_bytes(4, "little")), "the ids of the best"),
        (_word(2, b"\0\0\xc0\x7f"), "is finite"),
        (_how(1), None),  # not finite: it says so in good order
        (_how(2), None),
    ],
)
async def test_garbage_from_a_share_costs_a_replay(
    checkpoint: Checkpoint, spoil: Spoil, refusal: str | None
) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(cut(make_plan(checkpoint, ()), [(0, 1), (1, 1)]))
        spoiling(room, Kind.HEAD_TELL, 5, spoil)
        session = room.session(0, PROMPT, TOKENS)
        assert [one async for one in session.tokens()] == expected
        assert session.replays == 1
        assert len(room.refusals) == (refusal is not None)
        assert refusal is None or refusal in room.refusals[0]
        assert "answered" in room.failures[0].reason


async def test_an_answer_that_comes_twice_or_late_is_dropped(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(cut(make_plan(checkpoint, ()), [(0, 1), (1, 1)]))
        lead, kept = room.devices[peer(0)], list[TensorFrame]()

        def again(source: PeerId, to: PeerId, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is Kind.HEAD_TELL:
                for old in kept[-2:]:
                    lead.deliver(source, old)
                kept.append(frame)
                lead.deliver(source, frame)
            return frame

        room.tamper = again
        assert await collect(room) == expected
        assert lead.pipeline.refused["late answer about the vocabulary"] == 3 * len(kept) - 3
        assert not room.refusals


def then(tasks: asyncio.TaskGroup, happen: Coroutine[Any, Any, None]) -> None:
    tasks.create_task(happen)


async def replayed(checkpoint: Checkpoint, room: Room, kind: Kind, happen: Spoil) -> None:
    """Something happens to the fifth frame of that kind, and another plan goes on."""
    expected = await undisturbed(checkpoint)
    await room.put_up(cut(make_plan(checkpoint, ()), [(0, 1), (1, 1), (2, 1)]))
    spoiling(room, kind, 5, happen)
    session = room.session(0, PROMPT, TOKENS)
    assert [one async for one in session.tokens()] == expected
    assert session.replays + session.moves == 1


@pytest.mark.parametrize("kind", [Kind.HEAD_ASK, Kind.HEAD_TELL])
async def test_a_share_that_vanishes_while_it_is_asked(checkpoint: Checkpoint, kind: Kind) -> None:
    async with Room.of(checkpoint, 3) as room, asyncio.TaskGroup() as tasks:

        async def vanish() -> None:
            await room.lose(2)
            await room.put_up(cut(make_plan(checkpoint, (), 2), [(1, 1), (0, 2)]))

        await replayed(checkpoint, room, kind, lambda _: then(tasks, vanish()))


async def test_a_share_that_cannot_be_reached(checkpoint: Checkpoint) -> None:
    """The question does not leave, and nobody has noticed yet that the device is gone."""
    async with Room.of(checkpoint, 3) as room, asyncio.TaskGroup() as tasks:

        async def plan_anew() -> None:
            while not room.failures:
                await asyncio.sleep(0)
            assert room.failures[0].lost
            await room.put_up(cut(make_plan(checkpoint, (), 2), [(1, 1), (0, 2)]))

        gone: list[Device] = []

        def fall_silent(answer: TensorFrame) -> TensorFrame:
            gone.append(room.devices.pop(peer(2)))
            tasks.create_task(plan_anew())
            return answer

        await replayed(checkpoint, room, Kind.HEAD_TELL, fall_silent)
        gone[0].worker.close()  # not before: what it was asked already, it answers


async def test_a_plan_that_ends_while_a_share_is_asked(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 3) as room, asyncio.TaskGroup() as tasks:
        plan = make_plan(checkpoint, (), 2)
        await replayed(
            checkpoint,
            room,
            Kind.HEAD_TELL,
            lambda _: then(tasks, room.put_up(plan)),
        )


async def test_two_devices_that_ask_each_other_do_not_wait_for_ever(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Each chooses the tokens of one model, and has a share of the other's vocabulary."""
    other = Checkpoint.open(Path(write_tiny_gemma(tmp_path / "other.gguf", layers=2, seed=9)))
    expected = await undisturbed(checkpoint), await undisturbed(other)
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(cut(make_plan(checkpoint, ()), [(0, 1), (1, 1)]))
        plan = cut(make_plan(other, (), devices=(1,)), [(0, 1), (1, 1)])
        room.install(plan, other)
        far = OtherRoad(room, plan, other)
        for _ in range(3):
            told = await asyncio.gather(collect(room), collect(far))
            assert tuple(told) == expected


async def test_questions_of_strangers_are_refused(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 3) as room:
        await room.put_up(cut(make_plan(checkpoint, (2,)), [(0, 1), (1, 1)]))
        asks: list[tuple[PeerId, TensorFrame]] = []

        def keep(source: PeerId, to: PeerId, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind.of_head:
                asks.append((to, frame))
            return frame

        room.tamper = keep
        await collect(room)
        (asked, ask), (lead, tell) = asks[:2]
        assert (asked, lead) == (peer(0), peer(1))

        def send(source: int, to: PeerId, frame: TensorFrame | None) -> None:
            assert frame is not None
            room.devices[to].pipeline.on_frame(peer(source), frame)

        with pytest.raises(ProtocolError, match="chooses no tokens in this plan"):
            send(2, asked, ask)
        with pytest.raises(ProtocolError, match="without a share"):
            send(0, lead, ask)
        with pytest.raises(ProtocolError, match="that never asks"):
            send(1, asked, tell)
        with pytest.raises(ProtocolError, match="no share of the vocabulary"):
            send(2, lead, tell)
        with pytest.raises(ProtocolError, match="at most"):
            send(1, asked, altered(ask, rows=1 << 20, width=200))
        with pytest.raises(ProtocolError, match="a question about"):
            send(1, asked, _word(0, (3).to_bytes(4, "little"))(ask))
        with contextlib.suppress(ProtocolError):
            send(1, asked, _word(0, (1 << 31).to_bytes(4, "little"))(ask))


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [None],
        [Span(0, 0)],
        [Span(1, 4)],
        [Span(0, 4), Span(5, 9)],
        [Span(0, 4), Span(3, 9)],
        [Span(0, 4), Span(4, 4)],
    ],
)
def test_shares_that_do_not_add_up(checkpoint: Checkpoint, spans: list[Span | None]) -> None:
    head = tuple(Share(peer(n), vocab=span) for n, span in enumerate(spans))
    with pytest.raises(PlanError, match="do not add up"):
        spans_of(replace(make_plan(checkpoint, ()), head=head))


def test_two_shares_of_one_device(checkpoint: Checkpoint) -> None:
    head = (Share(peer(1), vocab=Span(0, 4)), Share(peer(1), vocab=Span(4, 9)))
    with pytest.raises(PlanError, match="do not add up"):
        spans_of(replace(make_plan(checkpoint, ()), head=head))
