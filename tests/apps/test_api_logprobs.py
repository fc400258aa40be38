"""Logprobs in the forms that OpenAI's clients read, of tokens that are no whole letters too."""

from __future__ import annotations

import pytest

from apps.api.logprobs import chat_logprobs, completion_logprobs
from runtime.chosen import Chosen
from runtime.text.tokenizer import Tokenizer
from runtime.text.vocabulary import Vocabulary
from tests.runtime.tiny_model import tokenizer_metadata


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Vocabulary(tokenizer_metadata()))


def chosen(tokenizer: Tokenizer) -> list[Chosen]:
    """The word "the", the end of the turn, and half of a letter."""
    ids = tokenizer.vocabulary.ids
    the, end, byte = ids["▁the"], ids["<end_of_turn>"], ids["<0xC3>"]
    return [Chosen(the, -0.5, ((the, -0.5), (end, -1.0))), Chosen(end, -2.0), Chosen(byte, -3.0)]


def test_a_completions_lists(tokenizer: Tokenizer) -> None:
    assert completion_logprobs(tokenizer, chosen(tokenizer), 10) == {
        "tokens": [" the", "<end_of_turn>", "bytes:\\xc3"],
        "token_logprobs": [-0.5, -2.0, -3.0],
        "top_logprobs": [{" the": -0.5, "<end_of_turn>": -1.0}, {}, {}],
        "text_offset": [10, 14, 14],
    }


def test_a_chats_entries(tokenizer: Tokenizer) -> None:
    told = chat_logprobs(tokenizer, chosen(tokenizer))
    assert told is not None
    first, second, third = told["content"]
    assert [one["token"] for one in first["top_logprobs"]] == [" the", "<end_of_turn>"]
    assert first["bytes"] == list(b" the")
    assert (second["token"], second["bytes"]) == ("<end_of_turn>", [])
    assert (third["token"], third["bytes"]) == ("bytes:\\xc3", [0xC3])


def test_nothing_where_nothing_was_asked_for(tokenizer: Tokenizer) -> None:
    assert completion_logprobs(tokenizer, [Chosen(5)], 0) is None
    assert chat_logprobs(tokenizer, [Chosen(5)]) is None
