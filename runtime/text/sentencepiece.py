"""SentencePiece's BPE, as in Gemma and Llama 2: merges by score, and bytes for unknown letters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from runtime.text.bpe import merge
from runtime.text.vocabulary import TokenType, Vocabulary

SPACE: Final = "▁"  # how the vocabulary writes a space
MAX_WORDS: Final = 1 << 14  # remembered; 3 MB, and a long text repeats most of its words
MAX_WORD_CHARS: Final = 32  # longer ones seldom come again


class SentencePiece:
    """Text to ids and ids to bytes, where no special token is in the text any more."""

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[str] | None = None) -> None:
        """`merges` are pairs as "left right", the first first, of a vocabulary without scores."""
        self._vocabulary = vocabulary
        self._merges: dict[str, float] | None = None
        if merges is not None:
            self._merges = {pair: float(index) for index, pair in enumerate(merges)}
        self._ids = vocabulary.ids
        self._ranks = [
            -score if kind == TokenType.NORMAL else None
            for score, kind in zip(vocabulary.scores(), vocabulary.types, strict=True)
        ]
        self._bytes = [vocabulary.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._words = _word_boundary(vocabulary.texts)
        self._remembered: dict[str, list[int]] = {}

    def written(self, text: str) -> str:
        """A space and the sign that stands for one are the same."""
        return text.replace(SPACE, " ")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._words.split(text.replace(" ", SPACE)):
            known = self._remembered.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(word) <= MAX_WORD_CHARS:
                    if len(self._remembered) >= MAX_WORDS:
                        self._remembered.clear()
                    self._remembered[word] = known
            ids += known
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in UTF-8; part of a letter for a byte token."""
        text = self._vocabulary.texts[token_id]
        if self._vocabulary.types[token_id] == TokenType.BYTE:
            return bytes([int(text[3:5], 16)]) if _BYTE_TOKEN.fullmatch(text) else b""
        return text.replace(SPACE, " ").encode()

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        run: list[str] = []  # letters that are tokens; the others cannot be merged
        for letter in word:
            if letter in self._ids:
                run.append(letter)
                continue
            ids += [self._ids[part] for part in merge(run, self._rank)]
            ids += self._encode_unknown(letter)
            run = []
        return ids + [self._ids[part] for part in merge(run, self._rank)]

    def _rank(self, left: str, right: str) -> float | None:
        if self._merges is not None:
            return self._merges.get(f"{left} {right}")
        token_id = self._ids.get(left + right)
        return None if token_id is None else self._ranks[token_id]

    def _encode_unknown(self, letter: str) -> list[int]:
        as_bytes = [self._bytes[byte] for byte in letter.encode()]
        known = [token_id for token_id in as_bytes if token_id is not None]
        if len(known) == len(as_bytes):
            return known
        unknown = self._vocabulary.unknown_id
        return [] if unknown is None else [unknown]


_BYTE_TOKEN: Final = re.compile("<0x[0-9A-F]{2}>")


def _word_boundary(texts: list[str]) -> re.Pattern[str]:
    """Where a text can be cut without cutting a token: before a space, after most letters.

    Nearly all tokens have their space in front. A letter that stands before a space inside some
    token (Gemma has `>▁</`) is no place to cut after; nor is a space.
    """
    joined = (text for text in texts if text.find(SPACE, 1) > 0)
    before_space = {text[i - 1] for text in joined for i in range(1, len(text)) if text[i] == SPACE}
    no_cut = "".join(map(re.escape, sorted({SPACE, *before_space})))
    return re.compile(f"(?<=[^{no_cut}])(?={SPACE})", re.DOTALL)
