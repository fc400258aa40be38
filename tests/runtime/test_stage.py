"""One stage by itself: steps that come again, sessions that end in the middle, its weights."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.holdings import Holdings
from runtime.sampling import Sampling
from runtime.stage import Stage
from runtime.worker import Worker
from tests.runtime.whole_model import WholeModel

PROMPT = torch.tensor([[2], [40], [41], [99]], dtype=torch.int32)


@pytest.fixture
def stage(tiny: WholeModel) -> Stage:
    blocks = dict(enumerate(tiny.blocks))
    return Stage(tiny.checkpoint, Span(0, len(blocks)), blocks, tiny.head)


def opened(stage: Stage) -> SessionId:
    session = SessionId.new()
    stage.open(session, Sampling(), 64)
    return session


def test_the_same_step_twice_gives_the_same_token(stage: Stage) -> None:
    session = opened(stage)
    first = stage.step(session, 0, PROMPT, True)
    again = stage.step(session, 0, PROMPT, True)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)


def test_a_session_closed_while_its_step_computes_harms_nobody(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop closes it when the client hangs up; the worker is in the middle of a layer."""
    session = opened(stage)
    block = stage._blocks[-1]
    forward = block.forward

    def close_first(*arguments: object) -> object:
        stage.close(session)
        return forward(*arguments)

    monkeypatch.setattr(block, "forward", close_first)
    assert stage.step(session, 0, PROMPT, True) is not None
    assert stage.step(session, 4, PROMPT[:1], True) is None


def test_a_gap_is_an_error_and_not_a_wrong_token(stage: Stage) -> None:
    session = opened(stage)
    with pytest.raises(GenerationFailed, match="expected the token at position 0"):
        stage.step(session, 3, PROMPT, True)


async def test_a_new_plan_loads_only_what_is_missing(tiny: WholeModel) -> None:
    worker = Worker(1)
    holdings = Holdings(worker, 1 << 30)
    never = pytest.fail
    await holdings.load(tiny.checkpoint, Span(0, 2), 0, lambda: never("there is room"))
    kept = holdings._blocks[1]
    await holdings.load(tiny.checkpoint, Span(1, 3), 0, lambda: never("there is room"))
    assert holdings.layers == (0, 1, 2)
    assert holdings._blocks[1] is kept
    holdings.release(Span(1, 3))
    assert holdings.layers == (1, 2)
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
