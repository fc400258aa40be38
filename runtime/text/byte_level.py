"""Byte-level BPE, as in GPT-2, Llama 3 and Qwen 2: a regex cuts words, a list of merges does them.

Every byte is written as one printable letter, so that the vocabulary is text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, pre_tokenizers

from mesh.errors import BadModelFile
from runtime.text.bpe import merge
from runtime.text.vocabulary import TokenType, Vocabulary


@dataclass(frozen=True, slots=True)
class WordRule:
    """What `tokenizer.ggml.pre` stands for."""

    pattern: str  # a match is a word; merges stay within
    whole_words: bool = False  # a word that is a token is taken as it is, whatever the merges say
    compose: bool = False  # letters and accents are put together first (NFC)
    adds_bos: bool = False  # where the file does not say
    before: tuple[str, ...] = ()  # cuts made before that: each match, and what is between


_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD_RULES: Final[Mapping[str, WordRule]] = {
    "gpt-2": WordRule(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ),
    "llama-bpe": WordRule(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
        whole_words=True,
        adds_bos=True,
    ),
    "qwen2": WordRule(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", compose=True
    ),
}


class ByteLevel:
    """Text to ids and ids to bytes, where no special token is in the text any more."""

    def __init__(self, vocabulary: Vocabulary, rule: WordRule) -> None:
        self._vocabulary = vocabulary
        self._rule = rule
        self._ranks = {pair: index for index, pair in enumerate(vocabulary.merges())}
        cuts = (Regex(pattern) for pattern in (*rule.before, rule.pattern))
        self._cut = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(cut, behavior="isolated") for cut in cuts]
        )
        if missing := [byte for byte, letter in LETTERS.items() if letter not in vocabulary.ids]:
            raise BadModelFile(
                f"the vocabulary lacks the bytes {missing[:5]}; take a complete GGUF file"
            )

    def written(self, text: str) -> str:
        """As it stands."""
        return text

    def encode(self, text: str) -> list[int]:
        if self._rule.compose:
            text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        for word, _ in self._cut.pre_tokenize_str(text):
            ids += self._encode_word("".join(LETTERS[byte] for byte in word.encode()))
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; it may be part of a letter."""
        text = self._vocabulary.texts[token_id]
        if self._vocabulary.types[token_id] == TokenType.USER_DEFINED:
            return text.encode()
        return b"".join(BYTES.get(letter, letter.encode()) for letter in text)

    def _encode_word(self, word: str) -> list[int]:
        ids = self._vocabulary.ids
        if self._rule.whole_words and word in ids:
            return [ids[word]]
        parts = merge(list(word), lambda left, right: self._ranks.get(f"{left} {right}"))
        # A merge whose result is no token is a fault of the file; its letters are tokens.
        return [ids[text] for part in parts for text in ((part,) if part in ids else part)]


def _letters() -> dict[int, str]:
    """Bytes that are printable in Latin-1 stand for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    return {byte: shifted.get(byte, chr(byte)) for byte in range(256)}


LETTERS: Final[Mapping[int, str]] = _letters()
BYTES: Final[Mapping[str, bytes]] = {letter: bytes([byte]) for byte, letter in LETTERS.items()}
