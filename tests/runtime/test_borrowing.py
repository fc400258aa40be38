"""A conversation that begins like one still open, and what either does before the other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.ids import PeerId, SessionId
from mesh.tensor_frame import Kind, TensorFrame
from planner.plan import Span
from runtime import kv_cache
from runtime.prefix import BLOCK_TOKENS, chain
from runtime.refill import Held
from runtime.sampling import Sampling
from runtime.session import Session
from runtime.stage import Slice, Stage
from runtime.weights import Checkpoint
from tests.runtime.room import Room, make_plan
from tests.runtime.tiny_model import write_tiny_gemma
from tests.runtime.whole_model import WholeModel

CONTEXT = 512
PROMPT = [50 + i * 7 % 200 for i in range(3 * BLOCK_TOKENS + 5)]
SHARED = 3 * BLOCK_TOKENS
OTHER = [60 + i * 11 % 200 for i in range(len(PROMPT))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=4, window=24, context=CONTEXT)
    whole = WholeModel(Checkpoint.open(path))
    del whole.blocks[-1]
    return whole


def hidden_stage(model: WholeModel) -> Stage:
    """All layers but the last: what comes out are hidden states, to be compared as numbers."""
    blocks = dict(enumerate(model.blocks))
    return Stage(model.checkpoint, Span(0, len(blocks)), blocks, None)


@pytest.fixture
def stage(model: WholeModel) -> Stage:
    return hidden_stage(model)


def plain(model: WholeModel, tokens: list[int]) -> Tensor:
    """[S, hidden] of the same layers, computed with a cache of its own."""
    return model.hidden(tokens, 0, model.new_cache())


def opened(stage: Stage, tokens: list[int], places: int = 8) -> tuple[SessionId, int]:
    session = SessionId.new()
    held = stage.open(session, Sampling(), CONTEXT, prefix=chain(tokens[:-1]), places=places)
    return session, held.tokens


def step(stage: Stage, session: SessionId, tokens: list[int], first: int, last: int) -> Tensor:
    """Sends tokens [first, last); [last - first, hidden]."""
    rows = torch.tensor(tokens[first:last], dtype=torch.int32).unsqueeze(1)
    (out,) = stage.turn([Slice(session, first, rows, True)])
    assert out is not None
    return out


def lender(stage: Stage, tokens: list[int] = PROMPT) -> SessionId:
    """An open session that has computed its prompt."""
    session, held = opened(stage, tokens)
    assert held == 0
    step(stage, session, tokens, 0, len(tokens))
    return session


def check_rest(stage: Stage, model: WholeModel, session: SessionId, held: int) -> None:
    longer = [*PROMPT, 77, 78, 79]
    out = step(stage, session, longer, held, len(longer))
    assert torch.allclose(out, plain(model, longer)[held:], atol=1e-4)


def test_what_an_open_conversation_has_is_not_computed_again(
    stage: Stage, model: WholeModel
) -> None:
    first = lender(stage)
    second, held = opened(stage, PROMPT)
    assert held == SHARED
    check_rest(stage, model, second, held)
    check_rest(stage, model, first, len(PROMPT))


def test_of_a_prompt_under_way_as_much_is_lent_as_is_computed(
    stage: Stage, model: WholeModel
) -> None:
    first, _ = opened(stage, PROMPT)
    assert opened(stage, PROMPT)[1] == 0, "nothing is computed yet"
    step(stage, first, PROMPT, 0, 100)
    second, held = opened(stage, PROMPT)
    assert held == 100
    check_rest(stage, model, second, held)
    check_rest(stage, model, first, 100)


@pytest.mark.parametrize("is_kept", [False, True])
def test_the_lender_ends_before_the_borrower_begins(
    stage: Stage, model: WholeModel, is_kept: bool
) -> None:
    """And somebody else goes on with what it left, and overwrites it."""
    first = lender(stage)
    second, held = opened(stage, PROMPT)
    stage.close(first, chain(PROMPT) if is_kept else b"")
    third_tokens = PROMPT[:BLOCK_TOKENS] + OTHER[BLOCK_TOKENS:]
    third, third_held = opened(stage, third_tokens)
    assert third_held == BLOCK_TOKENS
    out = step(stage, third, third_tokens, third_held, len(third_tokens))
    assert torch.allclose(out, plain(model, third_tokens)[third_held:], atol=1e-4)
    check_rest(stage, model, second, held)


def test_the_lender_is_rewound_and_overwritten_before_the_borrower_begins(
    stage: Stage, model: WholeModel
) -> None:
    first = lender(stage)
    second, held = opened(stage, PROMPT)
    other = PROMPT[:70] + OTHER[70:]
    out = step(stage, first, other, 70, len(other))
    assert torch.allclose(out, plain(model, other)[70:], atol=1e-4)
    check_rest(stage, model, second, held)


def test_a_borrower_told_to_begin_earlier_leaves_the_lender_whole(
    stage: Stage, model: WholeModel
) -> None:
    """Another stage had less of the prompt."""
    first = lender(stage)
    second, _ = opened(stage, PROMPT)
    other = PROMPT[:80] + OTHER[80:120]
    out = step(stage, second, other, 80, len(other))
    assert torch.allclose(out, plain(model, other)[80:], atol=1e-4)
    step(stage, first, PROMPT, SHARED, len(PROMPT))  # again: from before what was lent
    check_rest(stage, model, first, len(PROMPT))


def test_who_borrowed_lends_before_its_own_first_turn(stage: Stage, model: WholeModel) -> None:
    first = lender(stage)
    second, _ = opened(stage, PROMPT)
    stage.close(first)
    third, held = opened(stage, PROMPT)
    assert held == SHARED
    check_rest(stage, model, second, held)
    check_rest(stage, model, third, held)


def test_a_conversation_opened_in_the_middle_of_the_lenders_turn(
    stage: Stage, model: WholeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some layers have the new rows and others not: they count when the turn is over."""
    first, _ = opened(stage, PROMPT)
    step(stage, first, PROMPT, 0, 130)
    came: list[tuple[SessionId, int]] = []
    append = kv_cache.LayerCache.append

    def append_and_open(*arguments: object) -> object:
        """The loop opens the second one when the first layer has the rows."""
        appended = append(*arguments)  # type: ignore[arg-type]
        if not came:
            came.append(opened(stage, PROMPT))
        return appended

    monkeypatch.setattr(kv_cache.LayerCache, "append", append_and_open)
    step(stage, first, PROMPT, 110, len(PROMPT))
    ((second, held),) = came
    assert held == 110, "from there on it was being computed again"
    check_rest(stage, model, second, held)
    check_rest(stage, model, first, len(PROMPT))


def test_what_a_window_has_dropped_cannot_be_lent(
    stage: Stage, model: WholeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "GROWTH_TOKENS", 16)
    monkeypatch.setattr(kv_cache, "REWIND_TOKENS", 16)
    first = lender(stage)
    second, held = opened(stage, PROMPT)
    assert held == SHARED
    stage.close(second)
    longer = PROMPT + OTHER[:120]
    for position in range(len(PROMPT), len(longer)):
        step(stage, first, longer, position, position + 1)
    second, held = opened(stage, PROMPT)
    assert held == 0
    check_rest(stage, model, second, held)


def test_another_prompt_borrows_nothing(stage: Stage) -> None:
    lender(stage)
    assert opened(stage, OTHER)[1] == 0


def test_a_kept_cache_with_as_much_is_taken_and_nothing_copied(stage: Stage) -> None:
    first = lender(stage)
    second, held = opened(stage, PROMPT)
    step(stage, second, PROMPT, held, len(PROMPT))
    stage.close(second, chain(PROMPT))
    (cache,) = [one.cache for one in stage._kept if one.chain == chain(PROMPT)]
    third, _ = opened(stage, PROMPT)
    assert stage._open[third].cache is cache
    assert stage._open[first].cache is not cache


@given(seed=st.integers(0, 1 << 32))
@settings(deadline=None, max_examples=40)
def test_any_interleaving_computes_what_each_would_alone(model: WholeModel, seed: int) -> None:
    """Three conversations over texts that begin alike; opened, stepped, sent again, closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "GROWTH_TOKENS", 16)
        patch.setattr(kv_cache, "REWIND_TOKENS", 16)
        _interleave(model, random.Random(seed))


def _interleave(model: WholeModel, draw: random.Random) -> None:
    stage, places = hidden_stage(model), draw.randint(3, 5)
    texts = []
    for _ in range(3):
        shared = draw.randint(0, 190)
        texts.append(PROMPT[:shared] + OTHER[shared : shared + draw.randint(2, 200 - shared)])
    expected = [plain(model, text) for text in texts]
    going: dict[int, tuple[SessionId, int]] = {}
    for _ in range(30):
        which = draw.randrange(3)
        if which not in going:
            going[which] = opened(stage, texts[which], places)
        elif draw.random() < 0.25:
            session, done = going.pop(which)
            stage.close(session, chain(texts[which][:done]) if draw.random() < 0.5 else b"")
        else:
            _turn(stage, draw, texts, expected, going)
        assert len(stage._open) + len(stage._kept) <= places


def _turn(
    stage: Stage,
    draw: random.Random,
    texts: list[list[int]],
    expected: list[Tensor],
    going: dict[int, tuple[SessionId, int]],
) -> None:
    """Some of them together, each from where it is or from a little before."""
    parts = []
    for which in draw.sample(sorted(going), draw.randint(1, len(going))):
        session, done = going[which]
        first = max(0, done - draw.choice([0, 0, draw.randint(0, 16)]))
        last = min(len(texts[which]), first + draw.choice([1, draw.randint(1, 90)]))
        if first < last:
            rows = torch.tensor(texts[which][first:last], dtype=torch.int32).unsqueeze(1)
            parts.append((which, last, Slice(session, first, rows, True)))
    try:
        outs = stage.turn([part for _, _, part in parts])
    except GenerationFailed as error:  # a window may have dropped what came before what it lent
        if "cannot go back" not in str(error):
            raise
        for which, _, part in parts:
            stage.close(part.session)
            del going[which]
        return
    for (which, last, part), out in zip(parts, outs, strict=True):
        assert out is not None
        assert torch.allclose(out, expected[which][part.position : last], atol=1e-4)
        going[which] = (part.session, last)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gemma(path, layers=4, context=CONTEXT)
    return Checkpoint.open(Path(path))


def count_tokens(room: Room) -> list[int]:
    """The lengths of the steps that owners send from now on."""
    counts: list[int] = []

    def count(source: PeerId, to: PeerId, frame: TensorFrame) -> TensorFrame:
        if frame.header.kind is Kind.TOKENS:
            counts.append(frame.header.tile_rows)
        return frame

    room.tamper = count
    return counts


async def collect(session: Session) -> list[int]:
    return [chosen.token async for chosen in session.tokens()]


async def test_a_second_conversation_sends_only_what_the_first_did_not(
    checkpoint: Checkpoint,
) -> None:
    async with Room.of(checkpoint, 2) as room:
        await room.put_up(make_plan(checkpoint, (2,)))
        expected = await collect(room.session(0, PROMPT, 12))
        await room.put_up(make_plan(checkpoint, (2,), counter=2))
        stream = room.session(0, PROMPT, 60).tokens()
        first = [(await anext(stream)).token]
        counts = count_tokens(room)
        assert await collect(room.session(1, PROMPT, 12)) == expected
        assert len(PROMPT) - SHARED in counts
        assert max(counts) < BLOCK_TOKENS
        first += [chosen.token async for chosen in stream]
        assert first[:12] == expected


async def test_a_stage_that_promised_too_much_costs_one_retry(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is borrowed the second time, or the step would fail for ever."""
    expected: list[int] = []
    opening = Stage.open

    def promise(*arguments: object, prefix: bytes = b"", **others: object) -> Held:
        held = opening(*arguments, prefix=prefix, **others)  # type: ignore[arg-type]
        return Held(tuple(tokens + 1 for tokens in held.layers)) if prefix else held

    async with Room.of(checkpoint, 1) as room:
        await room.put_up(make_plan(checkpoint, ()))
        expected = await collect(room.session(0, PROMPT, 5))
        monkeypatch.setattr(Stage, "open", promise)
        assert await collect(room.session(0, PROMPT, 5)) == expected
        assert len(room.failures) == 1
