"""Text in, text out, against `transformers`: small random models with tokenizers made here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mesh.errors import PromptTooLong
from runtime.text.json_tokenizer import HALF, JsonTokenizer
from tests.runtime.library import TextToText

pytest.importorskip("transformers")
import transformers

from tests.runtime.random_encoders import LAYERS, VOCABULARY, write_random

CORPUS = [
    "translate English to German: the potato is on the kitchen table",
    "summarize: everyone brings what they have, and all of it is one machine",
    "the lights in the hallway are on, and the door is not locked",
    "Die Kartoffel ist auf dem Tisch; crème brûlée!",
]
PROMPTS = [
    "translate English to German: the potato is here",
    "summarize: the lights are on and the door is open",
    "Die Kartoffel ist",
    "kitchen",
    "crème, brûlée ... 42 🙂",
    "two  spaces\nand a new line",
]
NEW_TOKENS = 20
CUTS = [(), (LAYERS,), (2, 4)]


def t5_tokenizer() -> tokenizers.Tokenizer:
    """Pieces with a mark for the space in front, </s> behind, as T5's own."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return tokenizer


def bart_tokenizer() -> tokenizers.Tokenizer:
    """Bytes, merged; <s> in front and </s> behind."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", None, [("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=["t5-1.0", "t5-1.1", "bart"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    model = write_random(request.param, folder)
    made = bart_tokenizer() if request.param == "bart" else t5_tokenizer()
    assert made.get_vocab_size() <= VOCABULARY
    made.save(str(folder / "tokenizer.json"))
    return folder, model, transformers.PreTrainedTokenizerFast(tokenizer_object=made)


@torch.inference_mode()
def reference(model: Any, tokenizer: Any, text: str) -> str:
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, num_beams=1)[0][1:]
    ends = (out == model.generation_config.eos_token_id).nonzero()
    said = out[: int(ends[0])] if len(ends) else out
    for special in ("<pad>", "<s>", "</s>", "<unk>"):  # the tokenizer here knows of none
        said = said[said != tokenizer.convert_tokens_to_ids(special)]
    return tokenizer.decode(said)  # type: ignore[no-any-return]


def test_the_same_text_on_one_two_and_three_devices(pair: tuple[Path, Any, Any]) -> None:
    folder, model, tokenizer = pair
    expected = [reference(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len(set(expected)) > 2
    for cuts in CUTS:
        ours = TextToText(folder, cuts)
        assert [ours.answer(prompt, NEW_TOKENS) for prompt in PROMPTS] == expected, cuts


def test_a_text_longer_than_the_model_reads(tmp_path: Path) -> None:
    write_random("bart", tmp_path)
    bart_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PromptTooLong, match="the model reads 64; shorten it"):
        TextToText(tmp_path).answer("kitchen " * 100, 3)


@pytest.mark.parametrize("made", [t5_tokenizer, bart_tokenizer])
@given(ids=st.lists(st.integers(0, VOCABULARY - 1), max_size=30))
@settings(max_examples=150, deadline=None)
def test_text_as_it_comes_is_the_text_at_once(made: Any, ids: list[int]) -> None:
    """Spaces between words, and letters of several tokens, that a token alone does not have."""
    tokenizer = cached(made)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids).rstrip(HALF)


@functools.cache
def cached(made: Any) -> JsonTokenizer:
    return JsonTokenizer(made())
