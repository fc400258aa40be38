"""Encoders and encoder-decoders over stages that several devices share."""

from __future__ import annotations

import pytest
import torch

from planner.plan import Span, Split, Wire
from runtime.seq2seq.reader import column
from runtime.seq2seq.weights import Seq2SeqCheckpoint

pytest.importorskip("transformers")
from tests.runtime.chain import Chain
from tests.runtime.random_encoders import VOCABULARY
from tests.runtime.room import Room
from tests.runtime.test_seq2seq_session import SOUND, collect, made, undisturbed, wanted
from tests.runtime.walks.plans import group, grouped

LONG = torch.randint(3, VOCABULARY, (45,), generator=torch.Generator().manual_seed(3)).tolist()
WAYS = [
    pytest.param(split, parts, tiles, id=f"{split}-{parts}-{tiles}")
    for split, tiles in (
        (Split.HYBRID, 1),
        (Split.HYBRID, 3),
        (Split.TENSOR, 1),
        (Split.SEQUENCE, 1),
        (Split.SEQUENCE, 2),
    )
    for parts in ((1, 1), (1, 2), (2, 1, 1))
]


@pytest.fixture(scope="module", params=["bert", "distilbert-classes"])
def encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Seq2SeqCheckpoint:
    return made(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=["t5-1.1", "bart", "whisper"])
def speaker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Seq2SeqCheckpoint:
    return made(request.param, tmp_path_factory)


def stage(
    checkpoint: Seq2SeqCheckpoint, split: Split, parts: tuple[int, ...], tiles: int, wire: Wire
):
    spec = checkpoint.spec
    return group(
        Span(0, spec.layers),
        tuple(range(len(parts))),
        split,
        heads=spec.encoder.heads,
        columns=spec.encoder.ffn_size,
        parts=parts,
        tiles=tiles,
        wire=wire,
    )


async def vectors(checkpoint: Seq2SeqCheckpoint, *how: object) -> list[torch.Tensor]:
    async with Room.of(checkpoint, 4) as room:
        await room.put_up(grouped(checkpoint, stage(checkpoint, *how)))
        sources = [column(LONG), column(LONG[:37])]
        found = [vector async for vector in room.reading(3, sources).all_vectors()]
        assert not room.failures
        return found


@pytest.mark.parametrize(("split", "parts", "tiles"), WAYS)
async def test_the_same_vectors(
    encoder: Seq2SeqCheckpoint, split: Split, parts: tuple[int, ...], tiles: int
) -> None:
    chain = Chain.of(encoder)
    expected = [chain.vector(column(tokens))[0] for tokens in (LONG, LONG[:37])]
    for wire, apart in ((Wire.FP32, 1e-4), (Wire.FP16, 1e-2), (Wire.INT8, 5e-2)):
        found = await vectors(encoder, split, parts, tiles, wire)
        for vector, wanted_vector in zip(found, expected, strict=True):
            scale = float(wanted_vector.abs().max())
            assert float((vector - wanted_vector).abs().max()) < apart * scale


@pytest.mark.parametrize(("split", "parts", "tiles"), WAYS)
async def test_the_same_tokens(
    speaker: Seq2SeqCheckpoint, split: Split, parts: tuple[int, ...], tiles: int
) -> None:
    stack = speaker.spec.decoder
    assert stack is not None
    if split is not Split.SEQUENCE and min(stack.heads, 4) < sum(parts):
        parts = (1, 1)  # this decoder has too few heads for more devices
    is_sound = speaker.spec.architecture == "whisper"
    source = SOUND if is_sound else column(LONG)
    async with Room.of(speaker, 4) as room:
        await room.put_up(grouped(speaker, stage(speaker, split, parts, tiles, Wire.FP32)))
        said = await collect(room.wanting(3, wanted(speaker, source)))
        assert not room.failures
    assert said == undisturbed(speaker, source)
