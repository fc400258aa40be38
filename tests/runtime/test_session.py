"""A session over stages: equal tokens wherever the model is cut, and after whatever is lost."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from mesh.errors import Busy, GenerationFailed, PromptTooLong
from mesh.ids import PeerId
from mesh.tensor_frame import DType, Kind, TensorFrame
from runtime.assembly import Assembly
from runtime.replay import MAX_FAILED_STEPS
from runtime.sampling import Sampling
from runtime.session import Session
from runtime.weights import Checkpoint
from tests.runtime.room import Room, altered, make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma

LAYERS = 4
PROMPT = [2, 17, 40, 41, 99, 7, 3, 250, 12, 60]
TOKENS = 24
CUTS = [cuts for count in range(LAYERS) for cuts in itertools.combinations(range(1, LAYERS), count)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=LAYERS, seed=1)
    return Checkpoint.open(Path(path))


async def collect(session: Session) -> list[int]:
    return [token async for token in session.tokens()]


async def undisturbed(
    checkpoint: Checkpoint, prompt: list[int] | None = None, sampling: Sampling | None = None
) -> list[int]:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        return await collect(room.session(0, prompt or PROMPT, TOKENS, sampling))


@pytest.mark.parametrize("cuts", CUTS, ids=str)
async def test_the_same_tokens_wherever_the_model_is_cut(
    checkpoint: Checkpoint, cuts: tuple[int, ...]
) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, len(cuts) + 1) as room:
        await room.put_up(make_plan(checkpoint, cuts))
        assert await collect(room.session(0, PROMPT, TOKENS)) == expected


async def test_a_sampled_text_is_the_same_on_other_devices(checkpoint: Checkpoint) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=5)
    expected = await undisturbed(checkpoint, sampling=sampling)
    async with Room.of(checkpoint, 3) as room:
        await room.put_up(make_plan(checkpoint, (1, 3)))
        assert await collect(room.session(1, PROMPT, TOKENS, sampling)) == expected


async def test_the_owner_need_not_have_a_stage(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 3) as room:
        await room.put_up(make_plan(checkpoint, (2,), devices=(1, 2)))
        assert await collect(room.session(0, PROMPT, TOKENS)) == expected


async def test_several_sessions_at_once_do_not_mix(checkpoint: Checkpoint) -> None:
    prompts = [[2, 10 + n, 20 + n, 30 + n] for n in range(4)]
    expected = [await undisturbed(checkpoint, prompt) for prompt in prompts]
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        sessions = [room.session(n % 2, prompt, TOKENS) for n, prompt in enumerate(prompts)]
        assert await asyncio.gather(*(collect(session) for session in sessions)) == expected


async def replayed(
    checkpoint: Checkpoint, lost: int, at_token: int, survivors: tuple[int, ...]
) -> list[int]:
    async with Room.of(checkpoint, 3) as room:
        await room.put_up(make_plan(checkpoint, (1, 3)))
        session = room.session(0, PROMPT, TOKENS)
        tokens = []
        async for token in session.tokens():
            tokens.append(token)
            if len(tokens) == at_token:
                await room.lose(lost)
                await room.put_up(make_plan(checkpoint, (2,), 2, devices=survivors))
        assert session.replays == 1
        assert session.finish_reason == "length"
        return tokens


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("at_token", [1, 2, 9, 10, TOKENS - 1])
async def test_a_lost_stage_costs_no_token(
    checkpoint: Checkpoint, lost: int, at_token: int
) -> None:
    survivors = (0, 3 - lost)
    expected = await undisturbed(checkpoint)
    assert await replayed(checkpoint, lost, at_token, survivors) == expected


async def test_losing_plan_after_plan_still_gives_the_text(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 4) as room:
        await room.put_up(make_plan(checkpoint, (1, 2, 3)))
        session, tokens = room.session(0, PROMPT, TOKENS), []
        left = [1, 2, 3]
        async for token in session.tokens():
            tokens.append(token)
            if len(tokens) % 6 == 0 and left:
                await room.lose(left.pop())
                cuts = tuple(range(1, len(left) + 1))
                await room.put_up(make_plan(checkpoint, cuts, 5 - len(left)))
        assert tokens == expected


async def test_a_plan_lost_in_the_prefill_costs_a_replay(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 2) as room:
        first = make_plan(checkpoint, (2,))
        await room.put_up(first)

        def swallow(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame | None:
            return None if frame.header.epoch == first.epoch else frame

        room.tamper = swallow
        collecting = asyncio.ensure_future(collect(room.session(0, PROMPT, TOKENS)))
        await asyncio.sleep(0)
        await room.put_up(make_plan(checkpoint, (1,), 2))
        assert await collecting == expected


async def test_frames_of_an_older_epoch_are_refused_and_counted(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        kept: list[TensorFrame] = []

        def keep(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame | None:
            kept.append(frame)
            return frame

        room.tamper = keep
        await collect(room.session(0, PROMPT, 4))
        room.tamper = None
        await room.put_up(make_plan(checkpoint, (2,), 2))
        target = room.devices[peer(1)]
        session = room.session(0, PROMPT, TOKENS)
        tokens = []
        async for token in session.tokens():
            tokens.append(token)
            for frame in kept:
                target.deliver(peer(0), frame)
        assert tokens == expected
        assert target.pipeline.refused["stale epoch or plan"] > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 16, "tile_rows": 2, "rows": 2},
        {"kind": Kind.TOKENS},
        {"row": 3, "rows": 20},
        {"row": 1, "rows": 2, "tile_rows": 1},
        {"position": 10_000},
        {"rows": 5000},
        {"rows": 1 << 20, "width": 1},
        {"dtype": DType.FLOAT16},
        {"dtype": DType.INT32},
        {"dtype": DType.UINT8},
    ],
    ids=str,
)
async def test_a_malformed_frame_costs_one_retry(
    checkpoint: Checkpoint, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability test 17: wrong shape, type, kind, place or step; nothing is allocated for it, and
    the conversation goes on.
    """
    expected = await undisturbed(checkpoint)
    allocated: list[tuple[int, int]] = []
    allocate = Assembly.__post_init__

    def note(assembly: Assembly) -> None:
        allocated.append((assembly.first.rows, assembly.first.width))
        allocate(assembly)

    monkeypatch.setattr(Assembly, "__post_init__", note)
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        spoiled = 0

        def spoil(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
            nonlocal spoiled
            if frame.header.kind is Kind.HIDDEN and not spoiled:
                spoiled += 1
                return altered(frame, **fields)
            return frame

        room.tamper = spoil
        width = checkpoint.spec.hidden_size
        assert await collect(room.session(0, PROMPT, TOKENS)) == expected
        assert spoiled == len(room.refusals) == 1
        assert set(allocated) <= {(len(PROMPT), 1), (1, 1), (len(PROMPT), width), (1, width)}


async def test_a_step_that_always_fails_ends_in_one_clear_error(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        room.tamper = lambda source, target, frame: (
            altered(frame, position=10_000) if frame.header.kind is Kind.HIDDEN else frame
        )
        with pytest.raises(GenerationFailed, match="a step ends within"):
            await collect(room.session(0, PROMPT, TOKENS))
        assert len(room.failures) == MAX_FAILED_STEPS


NOT_NUMBERS = {"nan": b"\x00\x00\xc0\x7f", "inf": b"\x00\x00\x80\x7f", "-inf": b"\x00\x00\x80\xff"}


def poisoned(frame: TensorFrame, number: bytes, at: int) -> TensorFrame:
    """With one number of the payload replaced."""
    payload = bytearray(frame.payload)
    at = at % (len(payload) // 4) * 4
    payload[at : at + 4] = number
    return TensorFrame(frame.header, memoryview(payload))


@pytest.mark.parametrize("number", NOT_NUMBERS.values(), ids=NOT_NUMBERS)
async def test_one_number_that_is_none_costs_one_retry(
    checkpoint: Checkpoint, number: bytes
) -> None:
    """Reliability test 18: it never reaches a layer of ours, and its sender is named."""
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        spoiled = 0

        def spoil(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
            nonlocal spoiled
            if frame.header.kind is not Kind.HIDDEN or spoiled:
                return frame
            spoiled += 1
            return poisoned(frame, number, 7)

        room.tamper = spoil
        assert await collect(room.session(0, PROMPT, TOKENS)) == expected
        assert room.failures[0].reason.startswith(f"{peer(0).short} sent: numbers that are not")
        assert len(room.failures) == len(room.refusals) == 1
        assert not room.blamed


async def test_a_device_that_sends_what_is_no_number_again_is_replaced(
    checkpoint: Checkpoint,
) -> None:
    """Reliability test 18: the step is done elsewhere, and the tokens are the same."""
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 3) as room:
        await room.put_up(make_plan(checkpoint, (2,), devices=(1, 2)))
        room.tamper = lambda source, target, frame: (
            poisoned(frame, NOT_NUMBERS["nan"], 0)
            if source == peer(1) and frame.header.kind is Kind.HIDDEN
            else frame
        )
        collecting = asyncio.create_task(collect(room.session(0, PROMPT, TOKENS)))
        await asyncio.wait_for(room.blame_heard.wait(), 20)
        assert room.blamed == [peer(1)]
        await room.put_up(make_plan(checkpoint, (2,), 2, devices=(0, 2)))
        assert await asyncio.wait_for(collecting, 20) == expected


async def test_a_device_whose_own_numbers_are_none_chooses_no_token(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability test 18: there is nobody to name but the model itself."""
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        stage = next(iter(room.devices[peer(0)].pipeline._work.values())).post.stage
        enter = stage._enter
        monkeypatch.setattr(stage, "_enter", lambda *given: enter(*given) * float("nan"))
        with pytest.raises(GenerationFailed, match="not finite"):
            await collect(room.session(0, PROMPT, TOKENS))


async def test_a_token_outside_the_vocabulary_is_an_error_in_words(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        with pytest.raises(GenerationFailed, match="token ids lie between"):
            await collect(room.session(0, [2, 1_000_000], TOKENS))


async def test_a_prompt_longer_than_the_context_is_refused(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, (), context=8))
        with pytest.raises(PromptTooLong, match="10 tokens and the context holds 8"):
            await collect(room.session(0, PROMPT, TOKENS))


async def test_generation_ends_where_the_context_does(checkpoint: Checkpoint) -> None:
    expected = await undisturbed(checkpoint)
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, (), context=len(PROMPT) + 5))
        session = room.session(0, PROMPT, TOKENS)
        tokens = await collect(session)
        assert tokens == expected[: len(tokens)]
        assert len(tokens) == 6  # the last one is chosen, and has no place to go on from
        assert session.finish_reason == "length"


async def test_devices_that_hold_less_than_was_said_so_far_end_it_in_words(
    checkpoint: Checkpoint,
) -> None:
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        tokens = room.session(0, PROMPT, TOKENS).tokens()
        for _ in range(5):
            await anext(tokens)
        await room.put_up(make_plan(checkpoint, (), 2, context=12))
        with pytest.raises(GenerationFailed, match="bring one back"):
            await anext(tokens)


async def test_no_more_conversations_than_the_plan_has_room_for(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, (), sessions=1))
        first = room.session(0, PROMPT, TOKENS).tokens()
        await anext(first)
        with pytest.raises(Busy, match="all 1 places"):
            await collect(room.session(0, PROMPT, TOKENS))
        await first.aclose()
        assert len(await collect(room.session(0, PROMPT, TOKENS))) == TOKENS


async def test_a_session_given_up_frees_its_place_on_every_stage(checkpoint: Checkpoint) -> None:
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,), sessions=1))
        tokens = room.session(0, PROMPT, TOKENS).tokens()
        await anext(tokens)
        await tokens.aclose()
        assert [device.pipeline.conversations for device in room.devices.values()] == [0, 0]
