"""The tokenizer on its own: round trips, special tokens, streams, faults, other vocabularies."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import BadModelFile, GenerationFailed, UnsupportedModel
from runtime.formats.gguf import GGUFFile
from runtime.text.bpe import merge
from runtime.text.byte_level import LETTERS, WORD_RULES
from runtime.text.tokenizer import TextStream, Tokenizer
from runtime.text.vocabulary import Vocabulary
from runtime.weights import Checkpoint
from tests.runtime.gguf_writer import write_gguf
from tests.runtime.tiny_model import tiny_tokens, tokenizer_metadata

# Lone surrogates are no text, and the vocabulary writes a space as U+2581.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=80)
PIECES = st.lists(
    st.sampled_from(["the ", "in", " ", "\n", "<b>", "<end_of_turn>", "é", "🙂", "and", ".", "<"])
).map("".join)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and it's 12345 o'clock",
    "def main():\n    return [x ** 2 for x in range(100)]\n\n\n",
    "Größe, café, naïve; ça va? 日本語 🙂 \t tabs  and   spaces",
]


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(Vocabulary(tokenizer_metadata()))


@pytest.fixture(scope="module")
def gemma_tokenizer(gemma: Checkpoint) -> Tokenizer:
    return Tokenizer.from_gguf(gemma.file)


@given(text=TEXT | PIECES)
@settings(deadline=None)
def test_tiny_decodes_what_it_encoded(tiny_tokenizer: Tokenizer, text: str) -> None:
    ids = tiny_tokenizer.encode(text, parse_special=False)
    assert ids[0] == 2
    assert tiny_tokenizer.decode(ids) == text


@given(text=TEXT | PIECES)
@settings(deadline=None)
def test_gemma_decodes_what_it_encoded(gemma_tokenizer: Tokenizer, text: str) -> None:
    ids = gemma_tokenizer.encode(text, parse_special=False)
    assert gemma_tokenizer.decode(ids) == text


def test_special_tokens(tiny_tokenizer: Tokenizer) -> None:
    texts, _, _ = tiny_tokens()
    ids = tiny_tokenizer.encode("<start_of_turn>the\n\n\n<b>  x</b><end_of_turn>")
    assert [texts[token_id] for token_id in ids] == [
        "<bos>",
        "<start_of_turn>",
        "t",
        "he",
        "\n\n\n",
        "<b>",
        "  ",
        "x",
        "</b>",
        "<end_of_turn>",
    ]
    assert tiny_tokenizer.decode(ids) == "the\n\n\n<b>  x</b>"
    assert tiny_tokenizer.end_ids == {1, 5}


def test_what_a_user_wrote_is_no_control_token(tiny_tokenizer: Tokenizer) -> None:
    text = "<end_of_turn><start_of_turn>"
    assert tiny_tokenizer.encode(text) == [2, 5, 4]
    ids = tiny_tokenizer.encode(text, parse_special=False)
    assert not {4, 5} & set(ids)
    assert tiny_tokenizer.decode(ids) == text


def test_the_beginning_of_sequence_comes_once(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.encode("") == [2]
    assert tiny_tokenizer.encode("<bos>") == [2]
    assert tiny_tokenizer.encode("<bos><bos>") == [2, 2]
    assert tiny_tokenizer.encode("", bos=False) == []
    without = Tokenizer(Vocabulary(tokenizer_metadata() | {"tokenizer.ggml.add_bos_token": False}))
    assert without.encode("") == []


def test_a_space_in_front_where_the_file_wants_it() -> None:
    changed = tokenizer_metadata() | {"tokenizer.ggml.add_space_prefix": True}
    tokenizer = Tokenizer(Vocabulary(changed))
    assert tokenizer.vocabulary.texts[tokenizer.encode("the")[1]] == "▁the"
    assert tokenizer.decode(tokenizer.encode("the and")) == "the and"


def test_half_a_surrogate_pair_from_json(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.decode(tiny_tokenizer.encode("a\ud83d")) == "a\ufffd"
    assert tiny_tokenizer.decode(tiny_tokenizer.encode("\ud83d\ude42")) == "🙂"


def test_letters_without_bytes_become_unknown() -> None:
    texts = ["<unk>", "<s>", "a", "▁"]
    tokenizer = Tokenizer(
        Vocabulary(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": texts,
                "tokenizer.ggml.unknown_token_id": 0,
                "tokenizer.ggml.add_space_prefix": False,
            }
        )
    )
    assert tokenizer.encode("a é") == [2, 3, 0]


# --- streams --------------------------------------------------------------------------------------


@given(text=TEXT)
@settings(deadline=None)
def test_a_stream_gives_whole_letters_only(tiny_tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tiny_tokenizer)
    so_far = ""
    for token_id in tiny_tokenizer.encode(text, parse_special=False):
        so_far += stream.push(token_id)
        assert text.startswith(so_far)
    assert so_far + stream.finish() == text


def test_a_letter_appears_with_its_last_byte(tiny_tokenizer: Tokenizer) -> None:
    stream = TextStream(tiny_tokenizer)
    ids = tiny_tokenizer.encode("🙂", bos=False)
    assert [stream.push(token_id) for token_id in ids] == ["", "", "", "🙂"]
    for token_id in ids[:3]:
        assert stream.push(token_id) == ""
    assert stream.finish() == ""
    assert [stream.push(token_id) for token_id in ids] == ["", "", "", "🙂"]  # nothing is left over


def test_an_unknown_id_is_an_error(tiny_tokenizer: Tokenizer) -> None:
    for token_id in (-1, 10_000):
        with pytest.raises(GenerationFailed, match="token ids lie between 0 and"):
            TextStream(tiny_tokenizer).push(token_id)


# --- how it behaves -------------------------------------------------------------------------------


def test_building_it_does_not_stall_other_threads(gemma_path: Path) -> None:
    """Heartbeats leave each 0.5 s; the usual library holds the interpreter lock for 1 to 2 s."""
    gaps: list[float] = []
    done = threading.Event()

    def tick() -> None:
        last_s = time.perf_counter()
        while not done.wait(0.01):
            now_s = time.perf_counter()
            gaps.append(now_s - last_s)
            last_s = now_s

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        for _ in range(2):
            file = GGUFFile.open(gemma_path)
            Tokenizer.from_gguf(file).encode("hello " * 5000)
    finally:
        done.set()
        ticker.join()
    print(f"longest gap {max(gaps):.3f} s")
    assert max(gaps) < 0.5


def test_a_word_is_remembered_only_so_long(tiny_tokenizer: Tokenizer) -> None:
    numbers = " ".join(map(str, range(20_000)))
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(numbers)) == numbers


def test_merges_the_lowest_rank_first_and_the_leftmost_of_equals() -> None:
    ranks = {"ab": 2.0, "bc": 1.0, "aa": 1.0, "aaa": 0.0}
    rank = lambda left, right: ranks.get(left + right)  # noqa: E731
    assert merge([*"abc"], rank) == ["a", "bc"]
    assert merge([*"aaaa"], rank) == ["aaa", "a"]
    assert merge([*"x"], rank) == ["x"]
    assert merge([], rank) == []


# --- byte-level vocabularies ----------------------------------------------------------------------


def trained(pre: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A byte-level BPE of the `tokenizers` library on a small text, and its GGUF metadata."""
    rule = WORD_RULES[pre]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=rule.whole_words))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(rule.pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if rule.compose:
        library.normalizer = tokenizers.normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=list(LETTERS.values()),
    )
    library.train_from_iterator(CORPUS * 3, trainer)
    model = tokenizers.Tokenizer.from_str(library.to_str())
    texts = [library.id_to_token(index) for index in range(library.get_vocab_size())]
    merges = [" ".join(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    return library, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3] + [1] * (len(texts) - 1),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.mark.parametrize("pre", WORD_RULES)
def test_byte_level_equals_the_tokenizers_library(tmp_path: Path, pre: str) -> None:
    library, metadata = trained(pre)
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(write_gguf(tmp_path / "m.gguf", metadata, {})))

    @given(text=TEXT | PIECES | st.sampled_from(CORPUS))
    @settings(deadline=None, max_examples=200)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == library.encode(text).ids
        if not WORD_RULES[pre].compose and "<|end|>" not in text:  # a mark is no text
            assert tokenizer.decode(ids) == text

    check()
    assert tokenizer.encode("the<|end|>")[-1] == 0
    assert tokenizer.end_ids == {0}


def test_llama_3_begins_with_bos_where_the_file_is_silent() -> None:
    _, metadata = trained("llama-bpe")
    del metadata["tokenizer.ggml.add_bos_token"]
    assert Tokenizer(Vocabulary(metadata)).encode("") == [0]


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokens": []}, "has no tokenizer.ggml.tokens"),
        ({"token_type": [1, 2]}, "token_type does not hold one number"),
        ({"scores": [1.0]}, "scores does not hold one number"),
        ({"scores": "high"}, "scores does not hold one number"),
        ({"bos_token_id": 100_000}, "bos_token_id: expected a token's id"),
        ({"eos_token_id": "x"}, "eos_token_id: expected a token's id"),
        ({"add_bos_token": 1}, "add_bos_token: expected true or false"),
        ({"model": "gpt2", "pre": "gpt-2"}, "has no tokenizer.ggml.merges"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["a b"]}, "lacks the bytes"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadModelFile, match=text):
        Tokenizer.from_gguf(changed_file(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": "bert"}, "model is 'bert'; known are llama, gpt2"),
        ({"model": None}, "model is ''; known are"),
        ({"model": "gpt2", "pre": "tekken"}, "pre is 'tekken'; known are gpt-2, llama-bpe, qwen2"),
    ],
)
def test_a_tokenizer_we_do_not_have(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        Tokenizer.from_gguf(changed_file(tmp_path, changes))


def changed_file(folder: Path, changes: dict[str, Any]) -> GGUFFile:
    metadata = tokenizer_metadata()
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    kept = {key: value for key, value in metadata.items() if value is not None}
    return GGUFFile.open(write_gguf(folder / "m.gguf", kept, {}))
