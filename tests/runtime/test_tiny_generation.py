"""The tiny model end to end: chunks, replay, and going back, all with the same tokens."""

from __future__ import annotations

import pytest
import torch

from runtime.sampling import Sampling
from tests.runtime.whole_model import WholeModel

PROMPT = [2, *range(266, 326), 4, 300, 5]
SAMPLINGS = [Sampling(), Sampling(temperature=1.0, top_k=40, top_p=0.95, seed=11)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_chunks_change_nothing(tiny: WholeModel, sampling: Sampling, chunk: int) -> None:
    whole, logits = tiny.generate(PROMPT, 40, sampling)
    in_chunks, chunk_logits = tiny.generate(PROMPT, 40, sampling, chunk=chunk)
    assert in_chunks == whole
    assert torch.allclose(chunk_logits, logits, atol=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_a_replay_after_any_token_goes_on_the_same(tiny: WholeModel, sampling: Sampling) -> None:
    whole, _ = tiny.generate(PROMPT, 24, sampling)
    for done in range(1, 24):
        again, _ = tiny.generate(PROMPT + whole[:done], 24 - done, sampling)
        assert whole[:done] + again == whole


def test_the_text_varies_enough_to_catch_a_mistake(tiny: WholeModel) -> None:
    tokens, _ = tiny.generate(PROMPT, 64)
    assert len(set(tokens)) > 8
    assert not {0, 1, 2, 3} & set(tokens)
