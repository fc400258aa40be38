"""What a Whisper is told before it speaks: its languages, in a model of many and of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from mesh.errors import BadModelFile, BadPrompt
from runtime.models.seq2seq_spec import Seq2SeqSpec
from runtime.models.whisper_ct2 import ENGLISH_VOCABULARY
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.listener import Listener
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.text.json_tokenizer import JsonTokenizer

pytest.importorskip("transformers")
from tests.runtime.random_encoders import write_random

MARKS = ["startoftranscript", "en", "de", "transcribe", "notimestamps"]


def tokenizer(marks: list[str]) -> JsonTokenizer:
    ids = {f"<|{mark}|>": number for number, mark in enumerate(marks)}
    return JsonTokenizer(tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<|en|>")))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqSpec:
    folder: Path = tmp_path_factory.mktemp("whisper")
    write_random("whisper", folder)
    return Seq2SeqCheckpoint(open_folder(folder)).spec


@pytest.fixture(scope="module")
def multilingual(english: Seq2SeqSpec) -> Seq2SeqSpec:
    return replace(english, vocabulary=ENGLISH_VOCABULARY + 1)


def test_a_model_of_many_languages_is_told_which(multilingual: Seq2SeqSpec) -> None:
    assert Listener(multilingual, tokenizer(MARKS)).prompt == [0, 1, 3, 4]
    assert Listener(multilingual, tokenizer(MARKS), "de").prompt == [0, 2, 3, 4]


def test_a_model_of_one_language_is_told_nothing(english: Seq2SeqSpec) -> None:
    assert Listener(english, tokenizer(MARKS)).prompt == [0, 4]
    with pytest.raises(BadPrompt, match="knows English only"):
        Listener(english, tokenizer(MARKS), "de")


@pytest.mark.parametrize("language", ["xx", "transcribe", "EN", "", "en|>", "d\u00e9"])
def test_a_language_that_is_none(multilingual: Seq2SeqSpec, language: str) -> None:
    with pytest.raises(BadPrompt, match="language"):
        Listener(multilingual, tokenizer(MARKS), language)


def test_a_tokenizer_that_is_not_whisper_s(multilingual: Seq2SeqSpec) -> None:
    with pytest.raises(BadModelFile, match="has no <|notimestamps|>".replace("|", r"\|")):
        Listener(multilingual, tokenizer(MARKS[:-1]))
