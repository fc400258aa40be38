"""Caches that move with their layers: nothing is computed again, and where they do not come, all is
as if nobody had asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mesh.errors import ProtocolError
from mesh.ids import Epoch, ModelId, PlanId, SessionId
from mesh.limits import MAX_TENSOR_DIM
from mesh.tensor_frame import DType, Kind, TensorFrame
from planner.plan import Span
from runtime import former as former_module
from runtime import moving as moving_module
from runtime.compute.precision import Precision
from runtime.former import Former, Parted
from runtime.kv_cache import LayerCache
from runtime.session import Session
from runtime.session_messages import AskCache, FetchCaches
from runtime.weights import Checkpoint
from tests.runtime.room import Room, altered, make_plan, peer
from tests.runtime.test_replay import LAYERS, Told, told, undisturbed
from tests.runtime.tiny_model import write_tiny_gemma

__all__ = ["told"]

PROMPT = [2, 17, 40, 41, 99, 7, 3, 250, 12, 60]
TOKENS = 12
OWNER = 5

# Cuts and devices of the plan before, and of the one after: who has no layers any more has left.
MOVES = {
    "one for one": ((2, 4), (0, 1, 2), (2, 4), (0, 3, 2)),
    "between its neighbours": ((2, 4), (0, 1, 2), (3,), (0, 2)),
    "to the one before": ((2, 4), (0, 1, 2), (4,), (0, 2)),
    "the first goes": ((2, 4), (0, 1, 2), (3,), (1, 2)),
    "the last goes": ((2, 4), (0, 1, 2), (3,), (0, 1)),
    "everything to others": ((3,), (0, 1), (2, 4), (2, 3, 4)),
    "they change places": ((3,), (0, 1), (3,), (1, 0)),
    "all on one": ((2, 4), (0, 1, 2), (), (3,)),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=1, context=2048)
    return Checkpoint.open(Path(path))


def kept(room: Room) -> int:
    """How many conversations have caches of layers that moved, on all devices."""
    return sum(len(device.pipeline.moving.former) for device in room.devices.values())


async def moved(
    checkpoint: Checkpoint,
    room: Room,
    prompt: list[int] = PROMPT,
    move: str = "one for one",
    at_token: int = 5,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[Session, list[int]]:
    """A conversation under another plan after some tokens; `meanwhile` as soon as that is so."""
    cuts, before, next_cuts, after = MOVES[move]
    await room.put_up(make_plan(checkpoint, cuts, devices=before))
    session, tokens = room.session(OWNER, prompt, TOKENS), []
    async for token in session.tokens():
        tokens.append(token.token)
        if len(tokens) == at_token:
            await room.put_up(make_plan(checkpoint, next_cuts, 2, devices=after))
            meanwhile()
    return session, tokens


@pytest.mark.parametrize("move", MOVES, ids=str)
@pytest.mark.parametrize("length", [10, 700], ids=["short", "beyond the window"])
async def test_nothing_is_computed_again(
    checkpoint: Checkpoint, told: Told, move: str, length: int
) -> None:
    prompt = [50 + n * 7 % 240 for n in range(length)]
    expected = await undisturbed(checkpoint, prompt)
    for at_token in (1, 6, TOKENS - 1):
        told.rows.clear()
        async with Room.of(checkpoint, OWNER + 1) as room:
            session, tokens = await moved(checkpoint, room, prompt, move, at_token)
            assert not room.failed_steps
            assert kept(room) == 0, "who had the layers has let go of them"
        assert tokens == expected
        assert (session.rows_replayed, session.replays, session.moves) == (0, 0, 1)
        assert {told.computed(layer) for layer in range(LAYERS)} == {len(prompt) + TOKENS - 1}


async def test_a_second_plan_before_the_first_was_gone_on_with(
    checkpoint: Checkpoint, told: Told
) -> None:
    """The caches are still where they were under the last plan that all layers had them in."""
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, (2, 4), devices=(0, 1, 2)))
        session, tokens = room.session(OWNER, PROMPT, TOKENS), []
        async for token in session.tokens():
            tokens.append(token.token)
            if len(tokens) == 5:
                told.rows.clear()
                await room.put_up(make_plan(checkpoint, (2, 4), 2, devices=(0, 3, 2)))
                await room.put_up(make_plan(checkpoint, (2, 4), 3, devices=(0, 4, 2)))
    assert tokens == expected
    assert session.rows_replayed == 0
    assert told.computed(2) == TOKENS - 5


async def test_two_conversations_move_at_once(checkpoint: Checkpoint) -> None:
    expected = [await undisturbed(checkpoint, PROMPT), await undisturbed(checkpoint, PROMPT[:7])]
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, (2, 4), devices=(0, 1, 2)))
        sessions = [room.session(OWNER, prompt, TOKENS) for prompt in (PROMPT, PROMPT[:7])]
        streams = [session.tokens() for session in sessions]
        tokens = [[(await anext(stream)).token] for stream in streams]
        await room.put_up(make_plan(checkpoint, (3,), 2, devices=(0, 2)))
        for stream, came in zip(streams, tokens, strict=True):
            came += [token.token async for token in stream]
    assert tokens == expected
    assert [session.rows_replayed for session in sessions] == [0, 0]


# --- what goes wrong ------------------------------------------------------------------------------

GARBAGE: dict[str, Callable[[TensorFrame], TensorFrame]] = {
    "too wide": lambda frame: altered(frame, width=frame.header.width * 2),
    "other numbers": lambda frame: altered(frame, dtype=DType.INT32),
    "more tokens than asked for": lambda frame: altered(frame, rows=MAX_TENSOR_DIM),
    "behind what was asked for": lambda frame: altered(frame, position=MAX_TENSOR_DIM),
    "not the first row": lambda frame: altered(frame, row=1),
    "not a number": lambda frame: TensorFrame(
        frame.header,
        torch.full((frame.header.tile_bytes // 4,), torch.nan).numpy().data.cast("B"),
    ),
}


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
async def test_garbage_instead_of_a_cache_is_refused_and_costs_a_replay(
    checkpoint: Checkpoint, garbage: str
) -> None:
    """Bounds are checked before anything is allocated; the link is closed with the reason."""
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:

        def spoil(source: object, to: object, frame: TensorFrame) -> TensorFrame:
            return GARBAGE[garbage](frame) if frame.header.kind is Kind.CACHE else frame

        room.tamper = spoil
        session, tokens = await moved(checkpoint, room)
        assert len(room.refusals) == 1
    assert tokens == expected
    assert session.rows_replayed == len(PROMPT) + 4


async def test_a_cache_that_begins_too_late_is_of_no_use(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:

        def shorten(source: object, to: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is not Kind.CACHE:
                return frame
            rows = frame.header.rows - 1
            header = altered(frame, position=1, rows=rows, tile_rows=rows).header
            return TensorFrame(header, frame.payload[: header.tile_bytes])

        room.tamper = shorten
        session, tokens = await moved(checkpoint, room)
        assert not room.refusals
    assert tokens == expected
    assert session.rows_replayed == len(PROMPT) + 4


@pytest.mark.parametrize("lost", [1, 3], ids=["who gives", "who takes"])
async def test_a_device_dies_in_the_middle_of_it(checkpoint: Checkpoint, lost: int) -> None:
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:
        going: list[asyncio.Task[None]] = []

        async def lose() -> None:
            await room.lose(lost)
            await room.put_up(make_plan(checkpoint, (2, 4), 3, devices=(0, 4, 2)))

        def drop(source: object, to: object, frame: TensorFrame) -> TensorFrame | None:
            if frame.header.kind is not Kind.CACHE or going:
                return frame
            going.append(asyncio.ensure_future(lose()))
            return None

        room.tamper = drop
        session, tokens = await moved(checkpoint, room)
        assert going
    assert tokens == expected
    # Of the two layers nothing came, or they are where they were: with the one that gave.
    assert session.rows_replayed == (len(PROMPT) + 4 if lost == 1 else 0)


async def test_what_does_not_come_in_time_is_computed_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_module, "FETCH_S", 0.05)
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:
        held_back: list[TensorFrame] = []

        def hold(source: object, to: object, frame: TensorFrame) -> TensorFrame | None:
            if frame.header.kind is not Kind.CACHE:
                return frame
            held_back.append(frame)
            return None

        room.tamper = hold
        cuts = (2, 4)
        await room.put_up(make_plan(checkpoint, cuts, devices=(0, 1, 2)))
        session, tokens = room.session(OWNER, PROMPT, TOKENS), []
        async for token in session.tokens():
            tokens.append(token.token)
            if len(tokens) == 5:
                await room.put_up(make_plan(checkpoint, cuts, 2, devices=(0, 3, 2)))
            if len(tokens) == 8:
                taker = room.devices[peer(3)]
                taker.deliver(peer(1), held_back[0])
                assert taker.pipeline.refused == {"late cache": 1}
    assert tokens == expected
    assert session.rows_replayed == len(PROMPT) + 4


async def test_without_memory_for_what_moved_it_is_computed_again(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:

        def forget() -> None:
            room.devices[peer(1)].pipeline.moving.former.limit(0)

        session, tokens = await moved(checkpoint, room, meanwhile=forget)
    assert tokens == expected
    assert session.rows_replayed == len(PROMPT) + 4


async def test_a_conversation_that_ends_meanwhile_is_let_go_of(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, (2, 4), devices=(0, 1, 2)))
        stream = room.session(OWNER, PROMPT, TOKENS).tokens()
        await anext(stream)
        await room.put_up(make_plan(checkpoint, (2, 4), 2, devices=(0, 3, 2)))
        assert kept(room) == 1
        await stream.aclose()
        assert kept(room) == 0


async def test_a_fetch_that_no_owner_would_ask_for_is_refused(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, OWNER + 1) as room:
        plan = make_plan(checkpoint, (2, 4), devices=(0, 1, 2), context=64)
        await room.put_up(plan)
        session = room.session(OWNER, PROMPT, TOKENS)
        stream = session.tokens()
        await anext(stream)
        moving = room.devices[peer(1)].pipeline.moving

        async def fetch(layers: Span, tokens: int, owner: int = OWNER) -> None:
            request = FetchCaches(plan.plan_id, session.session_id, layers, peer(0), tokens)
            await moving.fetch(request, peer(owner), never)

        async def never(giver: object, asked: object) -> int:
            raise AssertionError("nobody is asked")

        for layers, tokens in ((Span(1, 3), 8), (Span(3, 3), 8), (Span(2, 5), 8), (Span(2, 4), 65)):
            with pytest.raises(ProtocolError, match="layers that it has for itself"):
                await fetch(layers, tokens)
        with pytest.raises(Exception, match="is not open here"):
            await fetch(Span(2, 4), 8, owner=4)
        await stream.aclose()


@pytest.mark.parametrize("tokens", [0, -1, MAX_TENSOR_DIM + 1])
def test_so_many_tokens_no_cache_has(tokens: int) -> None:
    plan, session = PlanId.new(), SessionId.new()
    with pytest.raises(ProtocolError, match="a cache has 1 to"):
        FetchCaches(plan, session, Span(0, 1), peer(0), tokens)
    with pytest.raises(ProtocolError, match="a cache has 1 to"):
        AskCache(Epoch(1, peer(0)), plan, session, session, 0, tokens)


# --- what is kept ---------------------------------------------------------------------------------


def parted(name: str, *layers: int) -> Parted:
    caches = {}
    for layer in layers:
        caches[layer] = LayerCache(1, 4, None, 64)
        caches[layer].append(0, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    return Parted((ModelId("0" * 64), Precision.FP32), SessionId(name * 32), caches)


async def test_the_oldest_goes_where_memory_is_short() -> None:
    former = Former()
    former.keep([parted("a", 1, 2), parted("b", 3), parted("c")])
    assert len(former) == 2, "without caches there is nothing to keep"
    former.limit(parted("b", 3).size_bytes)
    assert former.find(SessionId("a" * 32), 1) is None
    assert former.find(SessionId("b" * 32), 3) is not None
    former.keep([parted("b", 4)])
    assert former.find(SessionId("b" * 32), 3) is not None, "of the plan before that"
    assert former.find(SessionId("b" * 32), 4) is not None
    waiting = asyncio.ensure_future(former.fetched())
    await asyncio.sleep(0)
    assert not waiting.done()
    former.let_go(SessionId("b" * 32))
    await waiting


async def test_layers_that_are_back_are_taken_with_the_very_same_weights_alone() -> None:
    former = Former()
    former.keep([parted("a", 1, 2, 3), parted("b", 1)])
    assert not former.take((ModelId("0" * 64), Precision.INT8), Span(0, 4))
    assert not former.take((ModelId("1" * 64), Precision.FP32), Span(0, 4))
    taken = former.take((ModelId("0" * 64), Precision.FP32), Span(0, 3))
    assert {one.name[0]: set(one.caches) for one in taken} == {"a": {1, 2}, "b": {1}}
    assert former.find(SessionId("a" * 32), 3) is not None
    assert former.find(SessionId("a" * 32), 2) is None
    assert len(former) == 1


async def test_nothing_is_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(former_module, "KEPT_S", 0.01)
    former = Former()
    former.keep([parted("a", 1)])
    async with asyncio.timeout(5):
        await former.fetched()


@pytest.mark.parametrize("window", [None, 8])
def test_a_cache_comes_out_of_the_other_end_bit_by_bit(window: int | None) -> None:
    one, other = LayerCache(2, 4, window, 4096), LayerCache(2, 4, window, 4096)
    keys, values = torch.randn(2, 2, 1500, 4)
    for first in range(0, 1500, 300):
        part = slice(first, first + 300)
        one.append(first, keys[:, part], values[:, part])
    first, rows = one.packed(1400)
    other.begin(first, len(rows))
    for start in range(0, len(rows), 100):
        other.unpack(rows[start : start + 100])
    assert other.end == first + len(rows) == 1400
    assert other.reaches(1400)
    seen = [cache.append(1400, keys[:, 1400:1401], values[:, 1400:1401]) for cache in (other,)]
    one.truncate(1400)
    seen.append(one.append(1400, keys[:, 1400:1401], values[:, 1400:1401]))
    (mine, my_values, since), (theirs, their_values, then) = seen
    assert since == then
    assert torch.equal(mine, theirs)
    assert torch.equal(my_values, their_values)
