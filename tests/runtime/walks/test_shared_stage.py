"""A session over stages that several devices share: the tokens of one device, whatever is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.ids import PeerId
from mesh.tensor_frame import DType, Kind, TensorFrame
from planner.plan import Plan, Span, Split, Wire
from runtime.chosen import Chosen
from runtime.session import Session
from runtime.stage import Stage
from runtime.weights import Checkpoint
from tests.runtime.room import Device, Room, make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma
from tests.runtime.walks.plans import group, grouped

LAYERS = 4
PROMPT = [(7 * n) % 250 + 3 for n in range(90)]
TOKENS = 12
ALL = Span(0, LAYERS)
NAN = b"\x00\x00\xc0\x7f"
SPLITS = [Split.HYBRID, Split.TENSOR, Split.SEQUENCE]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=1)
    return Checkpoint.open(Path(path))


async def collect(session: Session) -> list[Chosen]:
    return [token async for token in session.tokens()]


async def undisturbed(checkpoint: Checkpoint, prompt: list[int] = PROMPT) -> list[Chosen]:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        return await collect(room.session(0, prompt, TOKENS))


def shared(
    checkpoint: Checkpoint,
    split: Split,
    devices: tuple[int, ...],
    layers: Span = ALL,
    **how: object,
):
    spec = checkpoint.spec
    return group(layers, devices, split, heads=spec.heads, columns=spec.ffn_size, **how)


@pytest.mark.parametrize("parts", [(1, 1), (3, 1), (1, 1, 1), (1, 2, 4), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("split", SPLITS)
async def test_the_same_tokens_however_a_stage_is_shared(
    checkpoint: Checkpoint, split: Split, parts: tuple[int, ...]
) -> None:
    expected = await undisturbed(checkpoint)
    count = len(parts)
    async with Room.of(checkpoint, count + 1) as room:
        stage = shared(checkpoint, split, tuple(range(count)), parts=parts, tiles=2)
        await room.put_up(grouped(checkpoint, stage))
        assert await collect(room.session(count, PROMPT, TOKENS)) == expected
        assert not room.failures


@pytest.mark.parametrize("split", SPLITS)
async def test_stages_of_groups_one_after_the_other(checkpoint: Checkpoint, split: Split) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 5) as room:
        front = shared(checkpoint, split, (0, 1), Span(0, 1), parts=(1, 2))
        back = shared(checkpoint, Split.HYBRID, (2, 3, 4), Span(1, LAYERS), tiles=3)
        await room.put_up(grouped(checkpoint, front, back))
        assert await collect(room.session(4, PROMPT, TOKENS)) == expected


@pytest.mark.parametrize("split", SPLITS)
async def test_several_conversations_share_the_turns(checkpoint: Checkpoint, split: Split) -> None:
    prompts = [PROMPT[: 20 + 30 * n] for n in range(3)]
    expected = [await undisturbed(checkpoint, prompt) for prompt in prompts]
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(grouped(checkpoint, shared(checkpoint, split, (0, 1), tiles=2)))
        sessions = [room.session(n % 2, prompt, TOKENS) for n, prompt in enumerate(prompts)]
        assert await asyncio.gather(*(collect(session) for session in sessions)) == expected


@pytest.mark.parametrize("split", SPLITS)
async def test_a_prompt_that_begins_like_the_last_one(checkpoint: Checkpoint, split: Split) -> None:
    """What only the lead has of the first answer is computed again by all, and no more."""
    answer = await undisturbed(checkpoint)
    longer = [*PROMPT, *(chosen.token for chosen in answer), *PROMPT[:70]]
    expected = await undisturbed(checkpoint, longer)
    async with Room.of(checkpoint, 2) as room:
        plan = grouped(checkpoint, shared(checkpoint, split, (0, 1)))
        await room.put_up(plan)
        assert await collect(room.session(0, PROMPT, TOKENS)) == answer
        async with asyncio.timeout(10):  # the others are done a moment after the lead
            while not all(kept(device, plan) for device in room.devices.values()):
                await asyncio.sleep(0)
        sent: list[int] = []

        def watch(source: object, target: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is Kind.TOKENS:
                sent.append(frame.header.position)
            return frame

        room.tamper = watch
        assert await collect(room.session(1, longer, TOKENS)) == expected
        assert min(sent) >= 64


def kept(device: Device, plan: Plan) -> bool:
    """Whether it has a cache of a conversation that ended."""
    stage = device.pipeline._work[plan.plan_id].post.stage
    return isinstance(stage, Stage) and len(stage._kept) > 0


@pytest.mark.parametrize("lost", [0, 1], ids=["lead", "other"])
@pytest.mark.parametrize("kind", [Kind.ORDER, Kind.PIECE])
@pytest.mark.parametrize("split", SPLITS)
async def test_a_device_lost_inside_a_turn_costs_one_replay(
    checkpoint: Checkpoint, split: Split, kind: Kind, lost: int
) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 4) as room:
        vanished = asyncio.Event()

        def swallow(source: object, target: object, frame: TensorFrame) -> TensorFrame | None:
            """From the first such frame on the device says nothing any more."""
            if frame.header.kind is kind and peer(lost) in (source, target):
                vanished.set()
            return None if vanished.is_set() and peer(lost) in (source, target) else frame

        room.tamper = swallow
        await room.put_up(grouped(checkpoint, shared(checkpoint, split, (0, 1, 2))))
        answer = asyncio.create_task(collect(room.session(3, PROMPT, TOKENS)))
        await asyncio.wait_for(vanished.wait(), 10)
        await room.lose(lost)
        room.tamper = None
        left = tuple(one for one in (0, 1, 2) if one != lost)
        await room.put_up(grouped(checkpoint, shared(checkpoint, split, left), counter=2))
        assert await asyncio.wait_for(answer, 20) == expected
        assert len(room.pauses) == 1


@pytest.mark.parametrize("split", SPLITS)
async def test_a_piece_that_comes_twice_breaks_the_turn_and_nothing_else(
    checkpoint: Checkpoint, split: Split
) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 2) as room:
        seen: list[TensorFrame] = []

        def again(source: object, target: object, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is Kind.PIECE and not seen and source == peer(1):
                seen.append(frame)
                room.devices[peer(0)].pipeline.on_frame(peer(1), frame)
            return frame

        room.tamper = again
        await room.put_up(grouped(checkpoint, shared(checkpoint, split, (0, 1))))
        assert await collect(room.session(0, PROMPT, TOKENS)) == expected
        assert seen
        assert any("twice" in refusal for refusal in room.refusals)


@pytest.mark.parametrize("wire", list(Wire))
@pytest.mark.parametrize("wrong", [0, 1], ids=["lead", "other"])
async def test_a_device_of_a_stage_that_computes_wrongly_is_replaced(
    checkpoint: Checkpoint, wrong: int, wire: Wire
) -> None:
    """Reliability test 18: whatever its pieces travel as; whoever gets one names it."""
    plan = grouped(checkpoint, shared(checkpoint, Split.HYBRID, (0, 1), wire=wire))
    after = grouped(checkpoint, shared(checkpoint, Split.HYBRID, (2, 3), wire=wire), counter=2)
    async with Room.of(checkpoint, 4) as room:
        await room.put_up(after)
        expected = await collect(room.session(2, PROMPT, TOKENS))
    async with Room.of(checkpoint, 4) as room:

        def spoil(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
            if frame.header.kind is not Kind.PIECE or source != peer(wrong):
                return frame
            payload = bytearray(frame.payload)
            payload[-4:] = b"\x00\x7c\x00\x7e" if frame.header.dtype is DType.FLOAT16 else NAN
            return TensorFrame(frame.header, memoryview(payload))

        room.tamper = spoil
        await room.put_up(plan)
        collecting = asyncio.create_task(collect(room.session(2, PROMPT, TOKENS)))
        await asyncio.wait_for(room.blame_heard.wait(), 20)
        assert set(room.blamed) == {peer(wrong)}
        await room.put_up(after)
        assert await asyncio.wait_for(collecting, 20) == expected


async def test_a_device_that_stops_waits_for_nobody(checkpoint: Checkpoint) -> None:
    """Its worker's thread would keep the process for a minute."""
    async with Room.of(checkpoint, 2) as room:
        swallowed = asyncio.Event()

        def swallow(source: object, target: object, frame: TensorFrame) -> TensorFrame | None:
            if frame.header.kind is not Kind.PIECE:
                return frame
            swallowed.set()
            return None

        room.tamper = swallow
        await room.put_up(grouped(checkpoint, shared(checkpoint, Split.HYBRID, (0, 1))))
        answer = asyncio.create_task(collect(room.session(0, PROMPT, TOKENS)))
        await asyncio.wait_for(swallowed.wait(), 10)
        answer.cancel()
        await asyncio.wait([answer])
        threads = [device.worker._executor for device in room.devices.values()]
    async with asyncio.timeout(5):
        await asyncio.gather(*(asyncio.to_thread(thread.shutdown) for thread in threads))
