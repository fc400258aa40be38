"""Encoders and encoder-decoders through real pipelines: wherever they are cut, whatever is lost."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import Tensor

from mesh.errors import GenerationFailed, PromptTooLong
from mesh.ids import PeerId
from mesh.tensor_frame import DType, Kind, TensorFrame
from runtime.cut import WHOLE
from runtime.models.encoder_block import EncoderLayer
from runtime.replay import MAX_FAILED_STEPS
from runtime.sampling import Sampling
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.reader import column
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.session import Session, Wanted
from runtime.session_messages import OpenSession

pytest.importorskip("transformers")
from tests.runtime.chain import Chain
from tests.runtime.random_encoders import LAYERS, VOCABULARY, write_random
from tests.runtime.room import Room, altered, make_plan, peer

TOKENS = 20
# In front of the decoder, in the encoder, in the decoder, both stacks in the middle.
CUTS = [(), (LAYERS,), (1,), (5,), (2, 4), (1, LAYERS, 5)]
TEXTS = [
    torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(count)).tolist()
    for count in (1, 7, 19, 33)
]
SOUND = torch.randn(100, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["t5-1.1", "bart", "whisper"])
def speaker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Seq2SeqCheckpoint:
    return made(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqCheckpoint:
    return made("t5-1.1", tmp_path_factory)


@pytest.fixture(scope="module", params=["bert", "bert-masked", "distilbert-classes"])
def encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Seq2SeqCheckpoint:
    return made(request.param, tmp_path_factory)


def made(name: str, tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqCheckpoint:
    folder = tmp_path_factory.mktemp(name)
    write_random(name, folder)
    return Seq2SeqCheckpoint(open_folder(folder))


def source_of(checkpoint: Seq2SeqCheckpoint, number: int = 2) -> Tensor:
    return SOUND if checkpoint.spec.architecture == "whisper" else column(TEXTS[number])


def wanted(
    checkpoint: Seq2SeqCheckpoint, source: Tensor, sampling: Sampling | None = None
) -> Wanted:
    decoding = checkpoint.decoding
    assert decoding is not None
    return Wanted([decoding.start], TOKENS, sampling or Sampling(), decoding.ends, source)


def undisturbed(checkpoint: Seq2SeqCheckpoint, source: Tensor) -> list[int]:
    return list(Chain.of(checkpoint).generate(source, TOKENS))


async def collect(session: Session) -> list[int]:
    """Without the token that ends it."""
    return [chosen.token async for chosen in session.tokens()]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
async def test_the_same_tokens_wherever_the_model_is_cut(
    speaker: Seq2SeqCheckpoint, cuts: tuple[int, ...]
) -> None:
    source = source_of(speaker)
    async with Room.of(speaker, len(cuts) + 1) as room:
        await room.put_up(make_plan(speaker, cuts))
        said = await collect(room.wanting(0, wanted(speaker, source)))
    assert said == undisturbed(speaker, source)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2)], ids=str)
async def test_the_same_vectors_wherever_the_model_is_cut(
    encoder: Seq2SeqCheckpoint, cuts: tuple[int, ...]
) -> None:
    chain = Chain.of(encoder)
    sources = [column(tokens) for tokens in TEXTS]
    async with Room.of(encoder, len(cuts) + 1) as room:
        await room.put_up(make_plan(encoder, cuts))
        found = [vector async for vector in room.reading(0, sources).all_vectors()]
    assert len(found) == len(sources)
    for vector, source in zip(found, sources, strict=True):
        assert torch.equal(vector, chain.vector(source)[0])


async def test_several_at_once_do_not_mix(speaker: Seq2SeqCheckpoint) -> None:
    sources = [source_of(speaker, number) + number for number in range(4)]
    expected = [undisturbed(speaker, source) for source in sources]
    async with Room.of(speaker, 2) as room:
        await room.put_up(make_plan(speaker, (4,)))
        sessions = [room.wanting(n % 2, wanted(speaker, one)) for n, one in enumerate(sources)]
        assert await asyncio.gather(*map(collect, sessions)) == expected


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("at_token", [1, 7])
async def test_a_lost_stage_costs_no_token(
    speaker: Seq2SeqCheckpoint, lost: int, at_token: int
) -> None:
    """Source and tokens go through the next plan; rules for the first token hold no more."""
    source = source_of(speaker)
    expected = undisturbed(speaker, source)
    assert len(expected) > at_token
    async with Room.of(speaker, 3) as room:
        await room.put_up(make_plan(speaker, (2, 4)))
        session, said = room.wanting(0, wanted(speaker, source)), []
        async for chosen in session.tokens():
            said.append(chosen.token)
            if len(said) == at_token:
                await room.lose(lost)
                await room.put_up(make_plan(speaker, (3,), 2, devices=(0, 3 - lost)))
        assert session.replays == 1
    assert said == expected


async def test_a_lost_stage_costs_no_vector(encoder: Seq2SeqCheckpoint) -> None:
    sources = [column(tokens) for tokens in TEXTS * 2]
    expected = [Chain.of(encoder).vector(source)[0] for source in sources]
    async with Room.of(encoder, 3) as room:
        await room.put_up(make_plan(encoder, (1, 2)))
        reading, found = room.reading(0, sources), []
        async for vector in reading.all_vectors():
            found.append(vector)
            if len(found) == 3:
                await room.lose(2)
                await room.put_up(make_plan(encoder, (2,), 2))
        assert reading.replays == 1
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


async def test_a_penalty_counts_what_was_said_before_a_loss(t5: Seq2SeqCheckpoint) -> None:
    sampling = Sampling(temperature=1.0, seed=3, repetition_penalty=1.5, frequency_penalty=1.0)
    source = column(TEXTS[2])
    async with Room.of(t5, 2) as room:
        await room.put_up(make_plan(t5, (4,)))
        expected = await collect(room.wanting(0, wanted(t5, source, sampling)))
        said = []
        async for chosen in room.wanting(0, wanted(t5, source, sampling)).tokens():
            said.append(chosen.token)
            if len(said) == 4:
                await room.lose(1)
                await room.put_up(make_plan(t5, (), 2))
    assert said == expected


@pytest.mark.parametrize(
    "change",
    [
        {"width": 2, "tile_rows": 19, "rows": 38},
        {"kind": Kind.ENCODED},
        {"dtype": DType.FLOAT32},
        {"rows": 4000},
        {"choose": True, "kind": Kind.HIDDEN},
    ],
    ids=str,
)
async def test_a_source_of_another_form_is_refused(
    t5: Seq2SeqCheckpoint, change: dict[str, object]
) -> None:
    """Refused by its receiver before anything is allocated, and an error in words for the owner."""

    def spoil(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
        is_source = frame.header.kind is Kind.SOURCE
        return altered(frame, **change) if is_source else frame

    async with Room.of(t5, 2) as room:
        await room.put_up(make_plan(t5, (), devices=(1,)))
        room.tamper = spoil
        with pytest.raises(GenerationFailed):
            await collect(room.wanting(0, wanted(t5, column(TEXTS[2]))))
        assert len(room.failures) == MAX_FAILED_STEPS
        assert room.refusals


async def test_tokens_in_the_place_of_a_source(t5: Seq2SeqCheckpoint) -> None:
    def spoil(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
        is_source = frame.header.kind is Kind.SOURCE
        return altered(frame, kind=Kind.TOKENS) if is_source else frame

    async with Room.of(t5, 2) as room:
        await room.put_up(make_plan(t5, (), devices=(1,)))
        room.tamper = spoil
        with pytest.raises(GenerationFailed, match="before the source was encoded"):
            await collect(room.wanting(0, wanted(t5, column(TEXTS[2]))))


async def test_no_tokens_come_to_a_stage_of_the_encoder(t5: Seq2SeqCheckpoint) -> None:
    def astray(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
        is_source = frame.header.kind is Kind.SOURCE
        return altered(frame, kind=Kind.TOKENS) if is_source else frame

    async with Room.of(t5, 2) as room:
        await room.put_up(make_plan(t5, (2,), devices=(1, 0)))
        room.tamper = astray
        with pytest.raises(GenerationFailed, match="layers of the encoder takes no tokens"):
            await collect(room.wanting(0, wanted(t5, column(TEXTS[2]))))


async def test_frames_that_are_no_numbers(tmp_path_factory: pytest.TempPathFactory) -> None:
    whisper = made("whisper", tmp_path_factory)
    sound = SOUND.clone()
    sound[3, 4] = torch.nan
    async with Room.of(whisper, 1) as room:
        await room.put_up(make_plan(whisper, ()))
        with pytest.raises(GenerationFailed, match="no finite number"):
            await collect(room.wanting(0, wanted(whisper, sound)))


@pytest.mark.parametrize("what", ["nan", "width", "token"])
async def test_a_vector_that_is_none(encoder: Seq2SeqCheckpoint, what: str) -> None:
    def spoil(source: PeerId, target: PeerId, frame: TensorFrame) -> TensorFrame:
        if frame.header.kind is not Kind.VECTOR:
            return frame
        if what == "nan":
            return TensorFrame(frame.header, memoryview(b"\x00\x00\xc0\x7f" * frame.header.width))
        if what == "width":
            return TensorFrame(
                altered(frame, width=frame.header.width - 1).header, frame.payload[:-4]
            )
        return altered(frame, kind=Kind.CHOSEN, dtype=DType.INT32)

    async with Room.of(encoder, 2) as room:
        await room.put_up(make_plan(encoder, (), devices=(1,)))
        room.tamper = spoil
        with pytest.raises(GenerationFailed, match="answered|not finite"):
            async for _ in room.reading(0, [column(TEXTS[1])]).all_vectors():
                pass
        assert bool(room.refusals) == (what != "nan")


async def test_a_source_longer_than_the_plan_has_room_for(t5: Seq2SeqCheckpoint) -> None:
    """Its owner would say so; whoever does not is refused before anything is remembered."""
    plan = make_plan(t5, (), context=16, devices=(1,))
    traffic = t5.traffic
    assert (traffic.most_rows(16), traffic.most_rows(1 << 20)) == (16, t5.spec.source.context)
    async with Room.of(t5, 2) as room:
        await room.put_up(plan)
        session = room.wanting(0, wanted(t5, column(TEXTS[0])))
        with room.devices[peer(0)].steps.lease(plan, session.session_id, traffic) as lease:
            await room.open(
                plan,
                OpenSession(plan.epoch, plan.plan_id, session.session_id, peer(0), Sampling(), 16),
            )
            steps = room.devices[peer(0)].steps
            answer = steps.begin_source(lease, 1, column(TEXTS[2]), choose=False)
            with pytest.raises(GenerationFailed, match="at most 16 rows; 19 came"):
                await answer


async def test_a_damaged_file_on_the_owner_s_own_device(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Nothing travels, so there is no link that could be closed."""
    encoder = made("bert", tmp_path_factory)
    async with Room.of(encoder, 1) as room:
        section = encoder.load_layer(0)
        assert isinstance(section.layer, EncoderLayer)
        section.layer.mlp_norm.weight.fill_(torch.nan)
        room._blocks[(encoder.model_id, 0, WHOLE)] = section
        await room.put_up(make_plan(encoder, ()))
        with pytest.raises(GenerationFailed, match="not finite"):
            async for _ in room.reading(0, [column(TEXTS[1])]).all_vectors():
                pass
        found = [vector async for vector in room.reading(0, []).all_vectors()]
        assert found == []


async def test_a_text_longer_than_the_plan_holds(t5: Seq2SeqCheckpoint) -> None:
    async with Room.of(t5, 1) as room:
        await room.put_up(make_plan(t5, (), context=16))
        with pytest.raises(PromptTooLong, match="19 tokens and the context holds 16"):
            await collect(room.wanting(0, wanted(t5, column(TEXTS[2]))))


async def test_what_a_stage_holds_goes_with_the_session(speaker: Seq2SeqCheckpoint) -> None:
    async with Room.of(speaker, 1) as room:
        await room.put_up(make_plan(speaker, ()))
        await collect(room.wanting(0, wanted(speaker, source_of(speaker))))
        assert room.devices[peer(0)].pipeline.conversations == 0
