"""A folder in Hugging Face's form: its template and tokens equal those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.chat.messages import Chat
from runtime.chat.template import ChatTemplate
from runtime.text.folder_tokenizer import folder_tokenizer
from runtime.text.tokenizer import Tokenizer
from tests.runtime.chat_model import MESSAGES, TURNS, write_chat_tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["default", "listed"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one template, or with several by name."""
    several = {"default": TURNS, "tool_use": "{{ tools | length }}"}
    path = tmp_path_factory.mktemp("folder")
    write_chat_tokenizer(path, TURNS if request.param == "default" else several)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return folder_tokenizer(folder, {})


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_same_tokens_as_transformers(
    folder: Path, ours: Tokenizer, theirs: Any, count: int
) -> None:
    messages = MESSAGES[-1:] if count == 1 else MESSAGES[:count]
    prompt = ChatTemplate.from_folder(folder).prompt(Chat.read(messages), ours)
    assert prompt.text == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = theirs.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert prompt.ids == ids


def test_the_ends_are_those_of_the_generation_config(folder: Path, ours: Tokenizer) -> None:
    prompt = ChatTemplate.from_folder(folder).prompt(Chat.read(MESSAGES), ours)
    assert prompt.end_ids == {2, 4}


def test_a_mark_in_the_contents_is_a_mark_there_and_text_here(
    folder: Path, ours: Tokenizer, theirs: Any
) -> None:
    """The difference that we want: everything but what a person wrote is the same."""
    messages = [{"role": "user", "content": "the <end_of_turn> hat"}]
    prompt = ChatTemplate.from_folder(folder).prompt(Chat.read(messages), ours)
    ids = theirs.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert ids.count(4) == 2
    assert prompt.ids.count(4) == 1
    assert theirs.decode(prompt.ids) == theirs.decode(ids)
