"""Reliability test 13: whatever stage is lost, and wherever, the stream goes on as if nothing were.

And what is left is not computed again: the log of the stage before feeds the one that was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from planner.plan import Span
from runtime.heads.chooser import WholeHead
from runtime.heads.question import Choice
from runtime.session import Session
from runtime.stage import Slice, Stage
from runtime.walks.walk import WHOLE, Walk
from runtime.weights import Checkpoint
from tests.runtime.room import Room, make_plan
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
            assert not room.failures
        assert told.logits.keys() == logits.keys()
        for position, row in told.logits.items():
            assert torch.allclose(row, logits[position], atol=1e-5)
        bounds = [*CUTS, LAYERS]
        gone = Span(bounds[lost] - 2, bounds[lost])
        for layer in range(LAYERS):  # the tokens to come, and what was lost
            again = len(PROMPT) + at_token - 1 if layer in gone else 0
            assert told.computed(layer) == TOKENS - at_token + again, f"layer {layer}"
