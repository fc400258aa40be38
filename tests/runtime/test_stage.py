"""One stage by itself: steps that come again, sessions that end in the middle, its weights."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.cut import WHOLE
from runtime.holdings import Holdings
from runtime.prefix import BLOCK_TOKENS, chain
from runtime.sampling import Sampling
from runtime.stage import Slice, Stage
from runtime.worker import Worker
from tests.runtime.whole_model import WholeModel


def column(tokens: list[int]) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int32).unsqueeze(1)


PROMPT = torch.tensor([[2], [40], [41], [99]], dtype=torch.int32)


@pytest.fixture
def stage(tiny: WholeModel) -> Stage:
    blocks = dict(enumerate(tiny.blocks))
    return Stage(tiny.checkpoint, Span(0, len(blocks)), blocks, tiny.head)


def opened(stage: Stage, prefix: bytes = b"", places: int = 8) -> SessionId:
    session = SessionId.new()
    stage.open(session, Sampling(), 256, prefix=prefix, places=places)
    return session


def step(
    stage: Stage, session: SessionId, position: int, rows: torch.Tensor, *, choose: bool = True
) -> torch.Tensor | None:
    (out,) = stage.turn([Slice(session, position, rows, choose)])
    return out


def test_the_same_step_twice_gives_the_same_token(stage: Stage) -> None:
    session = opened(stage)
    first = step(stage, session, 0, PROMPT)
    again = step(stage, session, 0, PROMPT)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_a_session_closed_while_its_step_computes_harms_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop closes it when the client hangs up; the worker is in the middle of a layer."""
    session = opened(stage)
    block = stage._blocks[-1]
    enter = block.enter
    tokens = list(range(100, 164))

    def close_first(*arguments: object) -> object:
        stage.close(session, chain(tokens))
        assert not len(stage._kept), "what the worker still writes to is not handed on"
        return enter(*arguments)

    monkeypatch.setattr(block, "enter", close_first)
    assert step(stage, session, 0, PROMPT) is not None
    assert step(stage, session, 4, PROMPT[:1]) is None
    assert [one.chain for one in stage._kept] == [chain(tokens)], "from then on it is"


def test_a_gap_is_an_error_and_not_a_wrong_token(stage: Stage) -> None:
    session, other = opened(stage), opened(stage)
    with pytest.raises(GenerationFailed, match="expected the token at position 0"):
        stage.turn([Slice(other, 0, PROMPT, True), Slice(session, 3, PROMPT, True)])
    assert step(stage, other, 0, PROMPT) is not None, "the other one is as it was"


@given(seed=st.integers(0, 1 << 32))
@settings(deadline=None, max_examples=20)
def test_who_shares_a_turn_does_not_change_the_tokens(tiny: WholeModel, seed: int) -> None:
    """Each session alone, and all of them together, in slices of any length."""
    draw = random.Random(seed)
    blocks = dict(enumerate(tiny.blocks))
    stage = Stage(tiny.checkpoint, Span(0, len(blocks)), blocks, tiny.head)
    prompts = [
        draw.choices(range(50, 290), k=draw.randint(2, 40)) for _ in range(draw.randint(2, 9))
    ]
    alone = []
    for prompt in prompts:
        session = opened(stage)
        alone.append(step(stage, session, 0, column(prompt)))
        stage.close(session)
    sessions, done = [opened(stage) for _ in prompts], [0] * len(prompts)
    found: list[torch.Tensor | None] = [None] * len(prompts)
    while any(at < len(prompt) for at, prompt in zip(done, prompts, strict=True)):
        slices, going = [], []
        for i, prompt in enumerate(prompts):
            if done[i] < len(prompt) and draw.random() < 0.7:
                last = draw.randint(done[i] + 1, len(prompt))
                slices.append(Slice(sessions[i], done[i], column(prompt[done[i] : last]), True))
                going.append((i, last))
        for (i, last), out in zip(going, stage.turn(slices), strict=True):
            done[i], found[i] = last, out
    for one, other in zip(alone, found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_a_prompt_that_begins_like_one_before_is_not_computed_again(stage: Stage) -> None:
    first = [50 + i % 200 for i in range(2 * BLOCK_TOKENS + 5)]
    session = opened(stage)
    step(stage, session, 0, column(first))
    stage.close(session, chain(first))
    longer = [*first, 77, 78]
    session = SessionId.new()
    held = stage.open(session, Sampling(), 256, prefix=chain(longer[:-1]), places=8).tokens
    assert held == 2 * BLOCK_TOKENS
    went_on = step(stage, session, held, column(longer[held:]))
    fresh = opened(stage)
    assert went_on is not None
    assert torch.equal(went_on, step(stage, fresh, 0, column(longer)))  # type: ignore[arg-type]


def test_another_prompt_gets_nothing_of_it(stage: Stage) -> None:
    first = [50 + i % 200 for i in range(BLOCK_TOKENS + 5)]
    session = opened(stage)
    step(stage, session, 0, column(first))
    stage.close(session, chain(first))
    other = [51, *first[1:]]
    held = stage.open(SessionId.new(), Sampling(), 256, prefix=chain(other), places=8)
    assert held.tokens == 0


def test_what_is_kept_makes_room_for_conversations(stage: Stage) -> None:
    chains = []
    for start in (50, 60, 70):
        tokens = [start + i % 100 for i in range(BLOCK_TOKENS)]
        session = opened(stage, places=2)
        step(stage, session, 0, column(tokens))
        stage.close(session, chain(tokens))
        chains.append(chain(tokens))
    assert [one.chain for one in stage._kept] == chains[1:], "two places, the oldest went"
    opened(stage, places=2)
    opened(stage, places=2)
    assert not len(stage._kept)


async def test_a_new_plan_loads_only_what_is_missing(tiny: WholeModel) -> None:
    worker = Worker(1)
    holdings = Holdings(worker, 1 << 30)
    never = pytest.fail
    await holdings.load(tiny.checkpoint, Span(0, 2), 0, lambda: never("there is room"))
    held = holdings.models[tiny.checkpoint.model_id]
    kept = held.blocks[1, WHOLE]
    await holdings.load(tiny.checkpoint, Span(1, 3), 0, lambda: never("there is room"))
    assert held.layers == (0, 1, 2)
    assert held.blocks[1, WHOLE] is kept
    holdings.release(tiny.checkpoint.model_id, Span(1, 3))
    assert held.layers == (1, 2)
    worker.close()


async def test_where_both_plans_do_not_fit_the_old_one_goes_first(tiny: WholeModel) -> None:
    """And really goes: nothing else keeps its weights alive."""
    layer_bytes = tiny.checkpoint.profile().layers[0].weight_bytes
    worker = Worker(1)
    holdings = Holdings(worker, 3 * layer_bytes)
    stage: Stage | None = await holdings.load(tiny.checkpoint, Span(0, 2), 0, lambda: None)
    assert stage is not None
    old = [weakref.ref(block) for block in stage._blocks]
    made_room = False

    def make_room() -> None:
        nonlocal stage, made_room
        stage, made_room = None, True

    await holdings.load(tiny.checkpoint, Span(1, 3), layer_bytes, make_room)
    gc.collect()
    assert made_room
    assert old[0]() is None
    assert old[1]() is not None  # still needed
    assert holdings.size_bytes == 2 * layer_bytes
    worker.close()
