"""Reliability test 13: whatever stage is lost, and wherever, the stream goes on as if nothing were.

And what is left is not computed again: the log of the stage before feeds the one that was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mesh.errors import PlanError
from mesh.tensor_frame import Kind, TensorFrame
from planner.plan import Plan, Span
from runtime.heads.chooser import WholeHead
from runtime.heads.question import Choice
from runtime.prefix import BLOCK_TOKENS
from runtime.session import Session
from runtime.stage import Slice, Stage
from runtime.walks.walk import WHOLE, Walk
from runtime.weights import Checkpoint
from tests.runtime.room import Room, make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma

LAYERS = 6
PROMPT = [2, 17, 40, 41, 99, 7, 3, 250, 12, 60]
TOKENS = 12
SPARE, OWNER = 3, 4
CUTS = (2, 4)
BEFORE = (0, 1, 2)  # on which devices the stages are

# Where the layers are once a device is lost: on one that had none, or on those that are left.
AFTER = {
    "a spare takes 0": (0, CUTS, (SPARE, 1, 2)),
    "a spare takes 1": (1, CUTS, (0, SPARE, 2)),
    "a spare takes 2": (2, CUTS, (0, 1, SPARE)),
    "the one behind takes 0": (0, (4,), (1, 2)),
    "the one before takes 1": (1, (4,), (0, 2)),
    "both neighbours take 1": (1, (3,), (0, 2)),
    "the one behind takes 1": (1, (2,), (0, 2)),
    "the one before takes 2": (2, (2,), (0, 1)),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=1, context=2048)
    return Checkpoint.open(Path(path))


@dataclass(slots=True)
class Told:
    """What the stages did, in the order of their turns."""

    logits: dict[int, Tensor] = field(default_factory=dict)  # by position, the last that was told
    rows: list[tuple[Span, int, int]] = field(default_factory=list)  # layers, first row, how many

    def computed(self, layer: int) -> int:
        """How many rows went through a layer."""
        return sum(count for span, _, count in self.rows if layer in span)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told, turn, choose = Told(), Stage.turn, WholeHead.choose

    def tell_turn(stage: Stage, slices: Sequence[Slice], walk: Walk = WHOLE) -> list[Tensor | None]:
        told.rows += [(one.layers or stage.span, one.position, len(one.rows)) for one in slices]
        return turn(stage, slices, walk)

    def tell_logits(head: WholeHead, hidden: Tensor, choices: Sequence[Choice]) -> object:
        logits = head._head.logits(hidden)
        told.logits |= {one.position: row for one, row in zip(choices, logits, strict=True)}
        return choose(head, hidden, choices)

    monkeypatch.setattr(Stage, "turn", tell_turn)
    monkeypatch.setattr(WholeHead, "choose", tell_logits)
    return told


async def collect(session: Session) -> list[int]:
    return [token.token async for token in session.tokens()]


async def undisturbed(checkpoint: Checkpoint, prompt: list[int], tokens: int = TOKENS) -> list[int]:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        return await collect(room.session(0, prompt, tokens))


def lengths(room: Room) -> set[int]:
    """How many tokens each layer on each device has of the one conversation."""
    return {
        layer.end
        for device in room.devices.values()
        for work in device.pipeline._work.values()
        if isinstance(work.post.stage, Stage)
        for one in work.post.stage._open.values()
        for layer in one.cache.layers
    }


@pytest.mark.parametrize("after", AFTER, ids=str)
async def test_a_stage_lost_at_any_position(checkpoint: Checkpoint, told: Told, after: str) -> None:
    """Reliability test 13: every position x every stage; equal tokens, logits within 1e-5, and
    every cache as long as the conversation.
    """
    lost, cuts, devices = AFTER[after]
    expected = await undisturbed(checkpoint, PROMPT)
    logits = dict(told.logits)
    for at_token in range(1, TOKENS):
        told.logits.clear()
        async with Room.of(checkpoint, OWNER + 1) as room:
            await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
            session, tokens = room.session(OWNER, PROMPT, TOKENS), []
            async for token in session.tokens():
                tokens.append(token.token)
                if len(tokens) > at_token:
                    assert lengths(room) == {len(PROMPT) + len(tokens) - 1}
                if len(tokens) == at_token:
                    await room.lose(lost)
                    told.rows.clear()
                    await room.put_up(make_plan(checkpoint, cuts, 2, devices=devices))
            assert tokens == expected
            assert (session.replays, session.moves) == (1, 0)
            assert not room.failed_steps
        assert told.logits.keys() == logits.keys()
        for position, row in told.logits.items():
            assert torch.allclose(row, logits[position], atol=1e-5)
        bounds = [*CUTS, LAYERS]
        gone = Span(bounds[lost] - 2, bounds[lost])
        for layer in range(LAYERS):  # the tokens to come, and what was lost
            again = len(PROMPT) + at_token - 1 if layer in gone else 0
            assert told.computed(layer) == TOKENS - at_token + again, f"layer {layer}"


@given(data=st.data())
@settings(deadline=None, max_examples=25)
async def test_whatever_happens_in_whatever_order(
    checkpoint: Checkpoint, data: st.DataObject
) -> None:
    """Reliability test 13, at random: losses and moves one after the other, to any plan over the
    devices that are left, with room for any part of the logs.
    """
    prompt = data.draw(st.lists(st.integers(50, 290), min_size=1, max_size=150))
    expected = await undisturbed(checkpoint, prompt)
    left = list(range(SPARE + 1))
    log_bytes = data.draw(st.sampled_from([0, 1 << 17, 1 << 24]))

    def any_plan(counter: int) -> Plan:
        devices = data.draw(st.permutations(left))
        count = data.draw(st.integers(1, len(devices)))
        cuts = data.draw(
            st.sets(st.integers(1, LAYERS - 1), min_size=count - 1, max_size=count - 1)
        )
        devices = tuple(devices[:count])
        return make_plan(checkpoint, tuple(sorted(cuts)), counter, devices=devices)

    async with Room.of(checkpoint, OWNER + 1, log_bytes) as room:
        plan = any_plan(1)
        await room.put_up(plan)
        session, tokens = room.session(OWNER, prompt, TOKENS), []
        async for token in session.tokens():
            tokens.append(token.token)
            assert lengths(room) == {len(prompt) + len(tokens) - 1}
            if data.draw(st.booleans()):
                if len(left) > 1 and data.draw(st.booleans()):
                    left.remove(gone := data.draw(st.sampled_from(left)))
                    await room.lose(gone)
                plan = any_plan(plan.epoch.counter + 1)
                await room.put_up(plan)
        assert tokens == expected
        assert not room.failed_steps


async def resumed(
    checkpoint: Checkpoint, room: Room, prompt: list[int], after: Plan, *, lost: int | None
) -> tuple[Session, list[int]]:
    """A conversation that is under another plan after five tokens."""
    await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
    session, tokens = room.session(OWNER, prompt, TOKENS), []
    async for token in session.tokens():
        tokens.append(token.token)
        if len(tokens) == 5:
            if lost is not None:
                await room.lose(lost)
            await room.put_up(after)
    return session, tokens


async def test_a_move_to_a_better_plan_is_no_loss(checkpoint: Checkpoint, told: Told) -> None:
    """A device joins and takes a stage: its caches come with it, nothing is computed again, and it
    is counted as a planned move.
    """
    expected = await undisturbed(checkpoint, PROMPT)
    told.rows.clear()
    async with Room.of(checkpoint, OWNER + 1) as room:
        after = make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2))
        session, tokens = await resumed(checkpoint, room, PROMPT, after, lost=None)
    assert tokens == expected
    assert (session.replays, session.moves) == (0, 1)
    assert session.rows_replayed == 0
    assert {told.computed(layer) for layer in range(LAYERS)} == {len(PROMPT) + TOKENS - 1}


async def test_the_same_plan_from_a_new_leader_computes_nothing_again(
    checkpoint: Checkpoint, told: Told
) -> None:
    expected = await undisturbed(checkpoint, PROMPT)
    told.rows.clear()
    async with Room.of(checkpoint, OWNER + 1) as room:
        after = make_plan(checkpoint, CUTS, 2, devices=BEFORE)
        session, tokens = await resumed(checkpoint, room, PROMPT, after, lost=None)
    assert tokens == expected
    assert session.rows_replayed == 0
    assert told.computed(3) == len(PROMPT) + TOKENS - 1


async def test_without_room_for_a_log_all_is_replayed(checkpoint: Checkpoint, told: Told) -> None:
    expected = await undisturbed(checkpoint, PROMPT)
    told.rows.clear()
    async with Room.of(checkpoint, OWNER + 1, log_bytes=0) as room:
        after = make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2))
        session, tokens = await resumed(checkpoint, room, PROMPT, after, lost=1)
        assert not room.failed_steps
    assert tokens == expected
    assert session.rows_replayed == len(PROMPT) + 4
    assert told.computed(0) == 2 * len(PROMPT) + 4 + TOKENS - 1


async def test_a_log_that_ends_in_the_middle_of_it_costs_a_replay(checkpoint: Checkpoint) -> None:
    """It was there when the owner asked, and others needed the room before it was given."""
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:

        def end_logs(source: object, to: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is Kind.AGAIN:
                logs = room.devices[peer(0)].pipeline.logs
                for log in logs._alive():
                    log.end_it()
            return frame

        room.tamper = end_logs
        after = make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2))
        session, tokens = await resumed(checkpoint, room, PROMPT, after, lost=1)
        assert ["is not kept here any more" in one.reason for one in room.failed_steps] == [True]
    assert tokens == expected
    assert session.rows_replayed == len(PROMPT) + 4, "the second time all is computed"


async def test_garbage_in_the_middle_of_it_costs_a_replay(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:

        def spoil(source: object, to: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is Kind.HIDDEN and frame.header.until:
                return TensorFrame(replace(frame.header, until=1), frame.payload)
            return frame

        room.tamper = spoil
        after = make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2))
        _, tokens = await resumed(checkpoint, room, PROMPT, after, lost=1)
        assert room.refusals == ["a step that ends before layer 1 does not come here"]
    assert tokens == expected


@pytest.mark.parametrize("asked", [(0, 4), (2, 0), (2, 513), (5, 4), (-1, -1)])
async def test_what_nobody_would_ask_of_a_log_is_refused(
    checkpoint: Checkpoint, asked: tuple[int, int]
) -> None:
    """Bounds are checked before anything is looked up; the owner starts over."""
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:

        def spoil(source: object, to: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is not Kind.AGAIN:
                return frame
            numbers = torch.tensor(asked, dtype=torch.int32).numpy().data.cast("B")
            return TensorFrame(frame.header, numbers)

        room.tamper = spoil
        after = make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2))
        _, tokens = await resumed(checkpoint, room, PROMPT, after, lost=1)
        assert len(room.refusals) == 1
    assert tokens == expected


async def test_a_stage_lost_in_the_middle_of_a_long_prompt(
    checkpoint: Checkpoint, told: Told
) -> None:
    """Several steps are under way, and the stages have come differently far."""
    prompt = [50 + n * 7 % 240 for n in range(1500)]
    expected = await undisturbed(checkpoint, prompt, 4)
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
        lost = asyncio.Event()

        def lose(source: object, to: object, frame: TensorFrame) -> TensorFrame | None:
            if frame.header.position >= 1000 and to == peer(2) and frame.header.epoch.counter == 1:
                lost.set()
                return None
            return frame

        room.tamper = lose
        collecting = asyncio.ensure_future(collect(room.session(OWNER, prompt, 4)))
        await lost.wait()
        told.rows.clear()
        await room.lose(1)
        await room.put_up(make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2)))
        assert await collecting == expected
        assert not room.failed_steps
    assert told.computed(0) < len(prompt) <= told.computed(2), "only the lost stage begins again"


async def test_a_prompt_known_from_before_is_fed_to_the_stage_that_was_lost(
    checkpoint: Checkpoint, told: Told
) -> None:
    """Two conversations that begin alike: what the second one borrowed is in its log too."""
    prompt = [50 + n * 7 % 240 for n in range(3 * BLOCK_TOKENS)]
    expected = await undisturbed(checkpoint, [*prompt, 7])
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
        first = room.session(OWNER, [*prompt, 5], TOKENS).tokens()
        await anext(first)
        session, tokens = room.session(OWNER, [*prompt, 7], TOKENS), []
        async for token in session.tokens():
            tokens.append(token.token)
            if len(tokens) == 5:
                await room.lose(1)
                told.rows.clear()
                await room.put_up(make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2)))
        await first.aclose()
    assert tokens == expected
    assert told.computed(0) == TOKENS - 5
    assert told.computed(2) == len(prompt) + TOKENS


async def test_two_stages_lost_at_once(checkpoint: Checkpoint, told: Told) -> None:
    """Reliability test 15: two failures at once. The one that is left is not computed again."""
    expected = await undisturbed(checkpoint, PROMPT)
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
        session, tokens = room.session(OWNER, PROMPT, TOKENS), []
        async for token in session.tokens():
            tokens.append(token.token)
            if len(tokens) == 5:
                await room.lose(0)
                await room.lose(2)
                told.rows.clear()
                await room.put_up(make_plan(checkpoint, CUTS, 2, devices=(OWNER, 1, SPARE)))
        assert tokens == expected
        assert session.replays == 1
    assert told.computed(2) == TOKENS - 5
    assert told.computed(0) == told.computed(5) == len(PROMPT) + TOKENS - 1


@pytest.mark.parametrize("second", [0, 2, SPARE], ids=["the giver", "one behind", "the new one"])
async def test_a_failure_during_recovery(checkpoint: Checkpoint, second: int) -> None:
    """Reliability test 15: another device goes while the lost stage is being computed again."""
    prompt = [50 + n * 7 % 240 for n in range(700)]
    expected = await undisturbed(checkpoint, prompt)
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
        session, tokens = room.session(OWNER, prompt, TOKENS), []
        stream = session.tokens()
        while len(tokens) < 5:
            tokens.append((await anext(stream)).token)
        again = asyncio.Event()

        def count(source: object, to: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is Kind.HIDDEN and frame.header.until:
                again.set()
            return frame

        room.tamper = count
        await room.lose(1)
        await room.put_up(make_plan(checkpoint, CUTS, 2, devices=(0, SPARE, 2)))
        going_on = asyncio.ensure_future(anext(stream))
        await again.wait()
        await room.lose(second)
        left = [device for device in (0, 2, SPARE) if device != second]
        await room.put_up(make_plan(checkpoint, (3,), 3, devices=tuple(left)))
        tokens.append((await going_on).token)
        tokens += [token.token async for token in stream]
        assert tokens == expected
        assert session.replays == 1, "one pause, as the client saw it"


async def test_where_nobody_can_go_on_the_stream_ends_with_the_reason(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability test 15: what the leader says is what the client hears, once; no place stays
    taken.
    """
    async with Room.of(checkpoint, OWNER + 1) as room:
        await room.put_up(make_plan(checkpoint, CUTS, devices=BEFORE))
        session, tokens = room.session(OWNER, PROMPT, TOKENS), []
        asked = 0

        async def no_plan() -> Plan:
            nonlocal asked
            asked += 1
            raise PlanError("no device here has layers 2..3 of tiny")

        stream = session.tokens()
        while len(tokens) < 5:
            tokens.append((await anext(stream)).token)
        monkeypatch.setattr(room, "plan", no_plan)
        await room.lose(1)
        with pytest.raises(PlanError, match="no device here has layers"):
            await anext(stream)
        assert (len(tokens), asked) == (5, 1)
        assert all(not device.pipeline.conversations for device in room.devices.values())
