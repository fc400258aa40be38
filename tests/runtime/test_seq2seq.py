"""T5, BART and Whisper against `transformers`: on one device, and cut into two and three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import GenerationFailed, PromptTooLong
from runtime.models.encoder_block import ROWS_AT_ONCE, _buckets
from runtime.models.seq2seq_spec import RelativePositions
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.reader import column
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stage import Slice

pytest.importorskip("transformers")
from tests.runtime.chain import Chain, load_stage
from tests.runtime.holed_copy import holed
from tests.runtime.random_encoders import (
    LAYERS,
    SUPPRESSED,
    SUPPRESSED_FIRST,
    TRANSLATORS,
    VOCABULARY,
    write_random,
)

TOLERANCE = 1e-4
NEW_TOKENS = 24
# In front of the decoder, in the encoder, in the decoder, a layer alone, both stacks in the middle.
CUTS = [(), (LAYERS,), (1,), (5,), (2, 4), (LAYERS, 4), (1, 2), (1, 5)]


def random_tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()


TEXTS = [random_tokens(count, count) for count in (1, 2, 5, 13, 29, 60)]
SOUNDS = [
    torch.randn(frames, 20, generator=torch.Generator().manual_seed(frames)) for frames in [100] * 6
]


@pytest.fixture(scope="module", params=[*sorted(TRANSLATORS), "whisper"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_random(request.param, folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("t5")
    write_random("t5-1.1", folder)
    return opened(folder)


def opened(folder: Path, cuts: tuple[int, ...] = ()) -> Chain:
    return Chain.of(Seq2SeqCheckpoint(open_folder(folder)), cuts)


def sources(chain: Chain) -> list[torch.Tensor]:
    if chain.spec.architecture == "whisper":
        return [sound + index for index, sound in enumerate(SOUNDS)]
    return [column(tokens) for tokens in TEXTS]


def source_inputs(model: Any, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    if model.config.model_type == "whisper":
        return {"input_features": rows.T[None]}
    return {"input_ids": rows.T.long()}


@torch.inference_mode()
def reference_logits(model: Any, rows: torch.Tensor, target: list[int]) -> torch.Tensor:
    """[S, V]"""
    inputs = source_inputs(model, rows)
    out = model(**inputs, decoder_input_ids=torch.tensor([target]))
    return out.logits[0]  # type: ignore[no-any-return]


def reference_tokens(model: Any, rows: torch.Tensor) -> list[int]:
    """Greedy, by the model's own rules, without the end token."""
    if model.config.model_type != "whisper":
        inputs = source_inputs(model, rows)
        said = model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=1)[0].tolist()
    else:  # its own generate() wants the tokens of a real Whisper
        said = [model.config.decoder_start_token_id]
        for _ in range(NEW_TOKENS):
            logits = reference_logits(model, rows, said)[-1].clone()
            logits[SUPPRESSED] = -torch.inf
            if len(said) == 1:
                logits[SUPPRESSED_FIRST] = -torch.inf
            said.append(int(logits.argmax()))
    end = model.generation_config.eos_token_id
    return said[1 : said.index(end, 1)] if end in said[1:] else said[1:]


def test_logits_are_those_of_transformers(pair: tuple[Path, Any]) -> None:
    folder, model = pair
    chain = opened(folder)
    for number, rows in enumerate(sources(chain)):
        session = chain.open()
        assert chain.encode(session, rows) is None
        target = random_tokens(30, number)
        theirs = reference_logits(model, rows, target)
        at_once = chain.logits(session, 0, target)
        in_steps = torch.cat(
            [chain.logits(session, at, target[at : at + 7]) for at in range(0, 30, 7)]
        )
        assert (at_once - theirs).abs().max() < TOLERANCE
        assert (in_steps - theirs).abs().max() < TOLERANCE
        assert theirs.std() > 0.1  # or it would say nothing


def test_a_text_longer_than_is_attended_to_at_once(tmp_path: Path) -> None:
    """A page through T5, whose bias would take more memory than is planned for scratch."""
    model = write_random("t5-1.1", tmp_path)
    chain = opened(tmp_path)
    rows, target = column(random_tokens(2 * ROWS_AT_ONCE + 77, 5)), random_tokens(9, 6)
    session = chain.open()
    chain.encode(session, rows)
    theirs = reference_logits(model, rows, target)
    assert (chain.logits(session, 0, target) - theirs).abs().max() < TOLERANCE


def test_says_what_transformers_says(pair: tuple[Path, Any]) -> None:
    """On one device, and cut into two and three at several places."""
    folder, model = pair
    expected = [reference_tokens(model, rows) for rows in sources(opened(folder))]
    assert len({tuple(tokens) for tokens in expected}) > 1  # the source counts
    for cuts in CUTS:
        chain = opened(folder, cuts)
        assert len(chain.stages) == len(cuts) + 1
        said = [list(chain.generate(rows, NEW_TOKENS)) for rows in sources(chain)]
        assert said == expected, cuts


def test_weighs_what_it_holds(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    checkpoint = Seq2SeqCheckpoint(open_folder(folder))
    profile = checkpoint.profile()
    assert len(profile.layers) == 2 * LAYERS
    for index, layer in enumerate(profile.layers):
        section = checkpoint.load_layer(index)
        modules = [section.layer, section.source, section.middle, section.target]
        held = [p for module in modules if module is not None for p in module.parameters()]
        empty = 0 if checkpoint.spec.key_biased or not checkpoint.spec.biased else 32 * 4
        empty *= 2 if checkpoint.spec.is_decoder(index) else 1  # keys have no bias in the file
        assert layer.weight_bytes == sum(tensor.nbytes for tensor in held) - empty
        assert (layer.kv_bytes_per_token > 0) == (index >= LAYERS)
    head = checkpoint.load_exit()
    assert head is not None
    assert profile.head_bytes == sum(tensor.nbytes for tensor in head.parameters())


@pytest.mark.parametrize("cuts", [(LAYERS,), (1, 4)], ids=str)
def test_each_device_needs_only_its_part_of_the_file(
    pair: tuple[Path, Any], cuts: tuple[int, ...], tmp_path: Path
) -> None:
    """Stages from copies with holes for all that `ranges_of` does not name."""
    folder, _ = pair
    whole = opened(folder, cuts)
    parts = [holed(folder, tmp_path / str(number), s.span) for number, s in enumerate(whole.stages)]
    stages = [load_stage(part, stage.span) for part, stage in zip(parts, whole.stages, strict=True)]
    cut = Chain(whole.checkpoint, stages)
    assert {part.model_id for part in parts} == {whole.checkpoint.model_id}
    for rows in sources(whole)[:3]:
        assert list(cut.generate(rows, NEW_TOKENS)) == list(whole.generate(rows, NEW_TOKENS))


def test_the_same_step_twice_says_the_same(t5: Chain) -> None:
    session = t5.open()
    t5.encode(session, column(TEXTS[3]))
    prompt = [0, 11, 12, 13]
    first = t5.logits(session, 0, prompt)
    later = t5.logits(session, 4, [50])
    assert torch.equal(first, t5.logits(session, 0, prompt))
    assert torch.equal(later, t5.logits(session, 4, [50]))


def test_another_source_takes_the_place_of_the_one_before(t5: Chain) -> None:
    session = t5.open()
    t5.encode(session, column(TEXTS[2]))
    t5.logits(session, 0, [0, 5, 6])
    t5.encode(session, column(TEXTS[4]))
    with pytest.raises(GenerationFailed, match="expected the token at position 0, got 3"):
        t5.logits(session, 3, [7])
    again = t5.logits(session, 0, [0])
    fresh = t5.open()
    t5.encode(fresh, column(TEXTS[4]))
    assert torch.equal(again, t5.logits(fresh, 0, [0]))


def test_a_step_before_the_source_is_an_error_and_not_a_wrong_token(t5: Chain) -> None:
    session = t5.open()
    with pytest.raises(GenerationFailed, match="before the source was encoded"):
        t5.step(session, 0, [0])


def test_a_closed_session_answers_nothing(t5: Chain) -> None:
    (stage,) = t5.stages
    session = t5.open()
    t5.close(session)
    source = Slice(session, 0, column([5]), True, is_source=True)
    token = Slice(session, 0, column([0]), True)
    assert stage.turn([source, token]) == [None, None]


def test_the_target_ends_with_the_positions(tmp_path: Path) -> None:
    write_random("whisper", tmp_path)
    chain = opened(tmp_path)
    assert len(list(chain.generate(SOUNDS[0], 1000))) <= 39
    session = chain.open()
    chain.encode(session, SOUNDS[0])
    with pytest.raises((PromptTooLong, GenerationFailed)):
        chain.step(session, 0, [3] * 41)


@pytest.mark.parametrize("shape", [(101, 20), (1, 20), (100, 19)])
def test_a_sound_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_random("whisper", tmp_path)
    with pytest.raises(GenerationFailed, match="hears 2 to 100 frames of 20 bands"):
        next(opened(tmp_path).generate(torch.zeros(shape), 3))


@given(
    buckets=st.integers(2, 40).map(lambda half: 2 * half),
    extra=st.integers(1, 200),
    position=st.integers(0, 300),
    count=st.integers(1, 12),
    both_ways=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_relative_positions_fall_into_the_buckets_of_transformers(
    buckets: int, extra: int, position: int, count: int, both_ways: bool
) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = RelativePositions(buckets, buckets // 2 + extra)
    tokens = position + count
    ours = _buckets(relative, position, count, tokens, both_ways)
    distance = torch.arange(tokens)[None, :] - torch.arange(position, tokens)[:, None]
    theirs = T5Attention._relative_position_bucket(
        distance, both_ways, relative.buckets, relative.max_distance
    )
    assert torch.equal(ours.long(), theirs)
