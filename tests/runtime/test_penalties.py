"""Penalties and logprobs over stages: the same after a loss, though the new stage chose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.codec import decode, encode
from mesh.ids import Epoch, PlanId, SessionId
from runtime.chosen import Chosen
from runtime.history import MAX_HISTORY_BYTES, History
from runtime.sampling import MAX_BIASED_TOKENS, Sampling
from runtime.session_messages import OpenSession
from runtime.weights import Checkpoint
from tests.runtime.room import Room, make_plan, peer
from tests.runtime.tiny_model import write_tiny_gemma

LAYERS = 4
PROMPT = [2, 17, 40, 41, 99, 7, 3, 250, 12, 60]
TOKENS = 24
SAMPLINGS = [
    Sampling(repetition_penalty=1.5, logprobs=2),
    Sampling(frequency_penalty=1.5, presence_penalty=0.5, logprobs=0),
    Sampling(1.0, None, 0.95, 11, 0.02, 1.2, 0.5, 0.5, ((40, 3.0), (41, -100.0)), 3),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return Checkpoint.open(Path(write_tiny_gemma(path, layers=LAYERS, seed=1)))


async def collect(
    checkpoint: Checkpoint, sampling: Sampling, lose_at: tuple[int, ...] = ()
) -> list[Chosen]:
    """A generation on three devices; at each of `lose_at` the last stage moves to another one."""
    async with Room.of(checkpoint, 3) as room:
        await room.put_up(make_plan(checkpoint, (1, 3)))
        session, chosen = room.session(0, PROMPT, TOKENS, sampling), []
        async for one in session.tokens():
            chosen.append(one)
            if len(chosen) in lose_at:
                moved = (0, 2, 1) if session.moves % 2 == 0 else (0, 1, 2)
                counter = 2 + session.moves
                await room.put_up(make_plan(checkpoint, (1, 3), counter, devices=moved))
        assert session.moves == len(lose_at)
        return chosen


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
async def test_a_loss_changes_neither_tokens_nor_logprobs(
    checkpoint: Checkpoint, sampling: Sampling
) -> None:
    expected = await collect(checkpoint, sampling)
    disturbed = await collect(checkpoint, sampling, (1, 7, TOKENS - 1))
    assert [one.token for one in disturbed] == [one.token for one in expected]
    assert sampling.logprobs is not None
    for one, other in zip(disturbed, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert len(one.top) == sampling.logprobs


async def test_a_penalty_changes_the_text(checkpoint: Checkpoint) -> None:
    plain = [one.token for one in await collect(checkpoint, Sampling())]
    for sampling in SAMPLINGS:
        assert [one.token for one in await collect(checkpoint, sampling)] != plain


async def test_no_logprobs_unless_they_are_asked_for(checkpoint: Checkpoint) -> None:
    assert all(one.logprob is None for one in await collect(checkpoint, Sampling()))


def test_the_largest_opening_fits_a_message() -> None:
    """With the longest history, the longest prefix and as many biases as there may be."""
    bias = tuple((200_000 + n, -12.345678) for n in range(MAX_BIASED_TOKENS))
    sampling = Sampling(0.7, 50, 0.9, (1 << 63) - 1, 0.1, 1.1, 0.1, 0.1, bias, 20)
    opening = OpenSession(
        Epoch(1 << 40, peer(1)),
        PlanId.new(),
        SessionId.new(),
        peer(2),
        sampling,
        1 << 20,
        bytes(MAX_HISTORY_BYTES),
        bytes(12 * 1024),
        SessionId.new(),
    )
    assert decode(OpenSession, encode(opening)) == opening


def test_a_history_travels_with_the_opening() -> None:
    packed = History(PROMPT, [5, 5]).pack()
    opening = OpenSession(
        Epoch(1, peer(1)), PlanId.new(), SessionId.new(), peer(2), Sampling(), 64, packed
    )
    received: OpenSession = decode(OpenSession, encode(opening))
    assert History.unpack(received.history).seen(99).tolist() == sorted({*PROMPT, 5})
