"""Encoders against `transformers`: on one device, and cut into two and three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.errors import GenerationFailed, PromptTooLong
from runtime.models.seq2seq_spec import Output
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.reader import column
from runtime.seq2seq.weights import Seq2SeqCheckpoint

pytest.importorskip("transformers")
from tests.runtime.chain import Chain
from tests.runtime.random_encoders import ENCODERS, LAYERS, VOCABULARY, write_random

TOLERANCE = 1e-4
CUTS = [(), (1,), (2,), (1, 2)]
TEXTS = [
    torch.randint(1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(count)).tolist()
    for count in (1, 2, 7, 19, 33, 48)
]


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_random(request.param, folder)


def opened(folder: Path, cuts: tuple[int, ...] = ()) -> Chain:
    return Chain.of(Seq2SeqCheckpoint(open_folder(folder)), cuts)


@torch.inference_mode()
def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits, or hidden states where the model has no head."""
    out = model(input_ids=torch.tensor([tokens]))
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).reshape(
        -1, out[0].shape[-1]
    )


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_answers_what_transformers_answers(pair: tuple[Path, Any], cuts: tuple[int, ...]) -> None:
    folder, model = pair
    chain = opened(folder, cuts)
    assert len(chain.stages) == len(cuts) + 1
    for tokens in TEXTS:
        ours, theirs = chain.answer(column(tokens)), reference(model, tokens)
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < TOLERANCE
        assert torch.equal(ours.argmax(dim=-1), theirs.argmax(dim=-1))
        assert theirs.abs().max() > 0.1  # or it would say nothing


def test_knows_which_head_the_checkpoint_has(pair: tuple[Path, Any]) -> None:
    folder, model = pair
    kinds = {"MaskedLM": Output.MASKED, "Classification": Output.CLASSES, "Model": Output.HIDDEN}
    (expected,) = (kind for end, kind in kinds.items() if type(model).__name__.endswith(end))
    assert opened(folder).spec.exit.output is expected


def test_weighs_what_it_holds(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    checkpoint = Seq2SeqCheckpoint(open_folder(folder))
    profile = checkpoint.profile()
    assert len(profile.layers) == LAYERS
    for index, layer in enumerate(profile.layers):
        section = checkpoint.load_layer(index)
        held = [*section.layer.parameters()]
        held += section.source.parameters() if section.source is not None else []
        assert layer.weight_bytes == sum(tensor.nbytes for tensor in held)
        assert layer.kv_bytes_per_token == 0
    head = checkpoint.load_head().exit
    assert profile.head_bytes == (sum(p.nbytes for p in head.parameters()) if head else 0)


def test_one_vector_for_a_text(pair: tuple[Path, Any]) -> None:
    """Logits over labels, or the mean of the hidden states; never those for masked words."""
    folder, model = pair
    chain = opened(folder, (1,))
    for tokens in TEXTS[:3]:
        if chain.spec.exit.output is Output.CLASSES:
            expected = reference(model, tokens)
        else:
            with torch.inference_mode():
                core = model.base_model(input_ids=torch.tensor([tokens]))
            expected = core.last_hidden_state.mean(dim=1)
        vector = chain.vector(column(tokens))
        assert vector.shape == (1, chain.checkpoint.traffic.vector_width)
        assert (vector - expected).abs().max() < TOLERANCE


def test_a_text_longer_than_the_positions_is_refused(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    with pytest.raises(PromptTooLong, match="reads 48 tokens at once, got 49"):
        opened(folder).answer(column([1] * 49))


def test_a_token_outside_the_vocabulary(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    with pytest.raises(GenerationFailed, match="token ids lie between 0 and 98"):
        opened(folder).answer(column([VOCABULARY]))
