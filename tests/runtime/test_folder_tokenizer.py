"""Tokenizers of folders: the ids that the usual library gives, without its hold on the lock."""

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
from tokenizers import (
    AddedToken,
    Regex,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.text.byte_level import LETTERS, WORD_RULES
from runtime.text.folder_tokenizer import folder_tokenizer
from runtime.text.tokenizer import TextStream, Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and it's 12345 o'clock",
    "def main():\n    return [x ** 2 for x in range(100)]\n\n\n",
    "Größe, café, naïve; ça va? 日本語 🙂 \t tabs  and   spaces",
    "aaa aaaa aaaaa xxxxxxxx the the the  the",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)
PIECES = st.lists(
    st.sampled_from(
        ["the ", " the", "in", " ", "  ", "\n", "<b>", "<|end|>", "é", "🙂", "12", "aaaa", ".", "<"]
    ),
    max_size=12,
).map("".join)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def trained(library: tokenizers.Tokenizer, special: list[str], letters: list[str]) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 400,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=letters,
    )
    library.train_from_iterator(CORPUS * 3, trainer)
    # A trained library keeps the ends of special tokens to itself: read anew, as from a file.
    return tokenizers.Tokenizer.from_str(library.to_str())


def byte_level(*cuts: Any, whole_words: bool = False, compose: bool = False) -> Any:
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=whole_words))
    library.pre_tokenizer = cuts[0] if len(cuts) == 1 else pre_tokenizers.Sequence(list(cuts))
    if compose:
        library.normalizer = normalizers.NFC()
    return trained(library, ["<s>", "<|end|>"], list(LETTERS.values()))


def split(pre: str) -> Any:
    return pre_tokenizers.Split(Regex(WORD_RULES[pre].pattern), "isolated")


def bytes_only() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def spaced(normalizer: Any, pre_tokenizer: Any) -> Any:
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    # Trained on words, as SentencePiece does, whatever is cut later.
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    library = trained(library, ["<unk>", "<s>", "<|end|>", *BYTES], ["▁", *"abcdefghijklmnop"])
    library.normalizer, library.pre_tokenizer = normalizer, pre_tokenizer
    # As in a real file, only these three are special; bytes are found by nobody in a text.
    content = json.loads(library.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def with_bos(library: Any) -> Any:
    bos = library.token_to_id("<s>")
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)]),
        ]
    )
    return library


def with_marks(library: Any) -> Any:
    library.add_tokens([AddedToken("<b>", normalized=False, special=False)])
    return library


def replace() -> Any:
    return normalizers.Replace(" ", "▁")


def metaspace(scheme: str) -> Any:
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)


MADE = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt-2 with a space in front": lambda: byte_level(pre_tokenizers.ByteLevel()),
    "llama 3": lambda: with_bos(byte_level(split("llama-bpe"), bytes_only(), whole_words=True)),
    "qwen 2": lambda: with_marks(byte_level(split("qwen2"), bytes_only(), compose=True)),
    "digits apart": lambda: byte_level(
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
    ),
    "digits together": lambda: byte_level(pre_tokenizers.Digits(), split("qwen2"), bytes_only()),
    "uncut": lambda: byte_level(bytes_only()),
    "llama 2": lambda: with_bos(
        spaced(normalizers.Sequence([normalizers.Prepend("▁"), replace()]), None)
    ),
    "metaspace always": lambda: with_marks(spaced(None, metaspace("always"))),
    "metaspace first": lambda: with_bos(with_marks(spaced(None, metaspace("first")))),
    "metaspace never": lambda: spaced(None, metaspace("never")),
    "gemma": lambda: with_bos(
        with_marks(spaced(replace(), pre_tokenizers.Split(" ", "merged_with_previous")))
    ),
}


def saved(library: Any, folder: Path, **settings: Any) -> Tokenizer:
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder_tokenizer(folder, {})


@pytest.mark.parametrize("kind", MADE)
def test_equals_the_usual_library(tmp_path: Path, kind: str) -> None:
    library = MADE[kind]()
    tokenizer = saved(library, tmp_path)

    @given(text=TEXT | PIECES | st.sampled_from(CORPUS))
    @settings(deadline=None, max_examples=150)
    def check(text: str) -> None:
        assert tokenizer.encode(text) == library.encode(text).ids

    check()
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids).strip() == text.strip()


@given(text=TEXT | PIECES)
@settings(deadline=None)
@pytest.mark.parametrize("kind", ["gpt-2", "gemma"])
def test_a_stream_gives_whole_letters_only(
    tmp_path_factory: pytest.TempPathFactory, kind: str, text: str
) -> None:
    tokenizer = streaming(kind, tmp_path_factory)
    stream, so_far = TextStream(tokenizer), ""
    for token_id in tokenizer.encode(text, parse_special=False, bos=False):
        so_far += stream.push(token_id)
        assert text.startswith(so_far)
    assert so_far + stream.finish() == text


STREAMING: dict[str, Tokenizer] = {}


def streaming(kind: str, folders: pytest.TempPathFactory) -> Tokenizer:
    if kind not in STREAMING:
        STREAMING[kind] = saved(MADE[kind](), folders.mktemp("tokenizer"))
    return STREAMING[kind]


def test_vocab_and_merges_as_gpt2_and_opt_have_them(tmp_path: Path) -> None:
    library = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    content = json.loads(library.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = [" ".join(pair) for pair in content["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {"0": {"content": "<s>", "special": True}, "1": {"content": "<|end|>", "special": True}}
    settings_file = tmp_path / "tokenizer_config.json"
    settings_file.write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = folder_tokenizer(tmp_path, {"eos_token_id": 1})
    for text in CORPUS:
        assert tokenizer.encode(text + "<|end|>") == library.encode(text + "<|end|>").ids
    assert tokenizer.end_ids == {1}
    bos = {"bos_token": {"content": "<s>"}, "add_bos_token": True, "eos_token": "<|end|>"}
    settings_file.write_text(json.dumps({"added_tokens_decoder": added} | bos))
    tokenizer = folder_tokenizer(tmp_path, {})
    assert tokenizer.encode("the") == [0, *library.encode("the").ids]
    assert tokenizer.end_ids == {1}
    settings_file.write_text(json.dumps(bos))  # as OPT has it: no list of special tokens
    assert folder_tokenizer(tmp_path, {}).encode("the<|end|>")[-1] == 1
    assert folder_tokenizer(tmp_path, {}).decode([0, 1]) == ""


def test_ends_are_gathered_from_all_files(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    library = MADE["llama 3"]()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = folder_tokenizer(tmp_path, {"eos_token_id": 9})
    assert tokenizer.end_ids == {1, 7, 9}


def test_the_settings_decide_on_the_beginning(tmp_path: Path) -> None:
    without = saved(MADE["llama 2"](), tmp_path, add_bos_token=False, bos_token="<s>")
    assert without.encode("") == []
    assert without.vocabulary.bos_id == 1


def test_rows_beyond_the_vocabulary_are_tokens_without_text(tmp_path: Path) -> None:
    library = MADE["gpt-2"]()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = folder_tokenizer(tmp_path, {"vocab_size": 1000})
    assert len(tokenizer.vocabulary) == 1000
    assert tokenizer.decode([999]) == ""


def test_transformers_agrees(tmp_path: Path) -> None:
    """Through its own way of opening a folder, which reads the settings too."""
    transformers = pytest.importorskip("transformers")
    for kind in ("gpt-2", "llama 3", "gemma"):
        folder = tmp_path / kind
        folder.mkdir()
        tokenizer = saved(MADE[kind](), folder, tokenizer_class="PreTrainedTokenizerFast")
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        for text in CORPUS:
            assert tokenizer.encode(text) == reference(text)["input_ids"]


def test_a_large_vocabulary_does_not_stall_other_threads(tmp_path: Path) -> None:
    """Heartbeats leave each 0.5 s; 250,000 tokens and as many merges, as Gemma has."""
    vocab = {letter: index for index, letter in enumerate(LETTERS.values())}
    merges = []
    for left in list(vocab):
        for right in list(LETTERS.values()):
            merges.append([left, right])
            vocab[left + right] = len(vocab)
    for index in range(190_000):
        vocab[f"word{index:07d}"] = len(vocab)
        merges.append(["word", f"{index:07d}"])
    content = {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=1))
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
        folder_tokenizer(tmp_path, {}).encode("hello " * 1000)
    finally:
        done.set()
        ticker.join()
    print(f"longest gap {max(gaps):.3f} s")
    assert max(gaps) < 0.5


# --- faults ---------------------------------------------------------------------------------------


def content_of(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MADE["gpt-2"]().to_str())
    model = content["model"] | changes.pop("model", {})
    return content | {"model": model} | changes


def opened(folder: Path, content: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder_tokenizer(folder, {})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"vocab": {}}}, "has no vocabulary"),
        ({"model": {"vocab": []}}, "has no vocabulary"),
        ({"model": {"vocab": {"a": -1}}}, "has token ids beside 0"),
        ({"model": {"vocab": {"a": 1 << 40}}}, "has token ids beside 0"),
        ({"model": {"vocab": {"a": 0}}}, "lacks the bytes"),
        ({"model": {"merges": "a b"}}, "merges is a list"),
        ({"model": {"merges": [["a"]]}}, "a merge that is no pair"),
        ({"added_tokens": {}}, "added_tokens is a list"),
        ({"added_tokens": [{"id": 0}]}, "adds a token without text or id"),
        ({"normalizer": {"form": "NFC"}}, "a step without a type"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
            "a broken pattern",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "a" * 5000},
                    "behavior": "Isolated",
                }
            },
            "a pattern of 5000 letters",
        ),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadModelFile, match=text):
        opened(tmp_path, content_of(**changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"type": "Unigram"}}, "a model of type 'Unigram'; known is BPE"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "sets end_of_word_suffix"),
        ({"normalizer": {"type": "Lowercase"}}, "step that is not known here: .*Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "step that is not known here: .*Whitespace"),
        ({"pre_tokenizer": None}, "neither a byte-level tokenizer nor"),
        ({"post_processor": {"type": "BertProcessing"}}, "step that is not known here"),
    ],
)
def test_a_tokenizer_we_do_not_have(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        opened(tmp_path, content_of(**changes))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="has no tokenizer.json; copy all"):
        folder_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="as tokenizer.model only; take a copy with"):
        folder_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(BadModelFile, match="cannot be read"):
        folder_tokenizer(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(BadModelFile, match="expected a JSON object"):
        folder_tokenizer(tmp_path, {})
