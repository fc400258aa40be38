"""The tokenizer of a GGUF file: text to token ids, and ids back to text, also as they come."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Protocol

from runtime.formats.gguf import GGUFFile
from runtime.text.byte_level import WORD_RULES, ByteLevel, WordRule
from runtime.text.sentencepiece import SentencePiece
from runtime.text.vocabulary import TokenType, Vocabulary


class Scheme(Protocol):
    """How a family of tokenizers turns plain text into ids, and an id into bytes."""

    def written(self, text: str) -> str:
        """The text as the vocabulary's special tokens are looked for in it."""

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class SpacePrefix(StrEnum):
    """Where a space is put in front of a run of text, that is of what stands between marks."""

    NEVER = "never"
    ALWAYS = "always"
    UNLESS_THERE = "unless_there"  # not in front of a run that begins with one
    FIRST = "first"  # as the one before, at the very beginning of the whole text only


class Tokenizer:
    """Thread-safe. Made from the file's metadata in a fraction of a second; nothing is cached."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        rule: WordRule | None = None,
        prefix: SpacePrefix | None = None,
    ) -> None:
        """`rule` and `prefix` are for a vocabulary whose file says more than a GGUF file does.

        Raises UnsupportedModel for a kind of tokenizer that we do not have.
        """
        self.vocabulary = vocabulary
        self.end_ids = vocabulary.end_ids  # tokens that end a generation
        self._scheme: Scheme
        if vocabulary.name("model", "", ("llama", "gpt2")) == "llama":
            by_merges = vocabulary.has("merges") and not vocabulary.has("scores")
            merges = vocabulary.merges() if by_merges else None
            self._scheme = SentencePiece(vocabulary, merges)
            self._adds_bos = vocabulary.flag("add_bos_token", True)
            added = vocabulary.flag("add_space_prefix", True)
            self._prefix = prefix or (SpacePrefix.ALWAYS if added else SpacePrefix.NEVER)
            self._strips_prefix = self._prefix is not SpacePrefix.NEVER
        else:
            rule = rule or WORD_RULES[vocabulary.name("pre", "gpt-2", tuple(WORD_RULES))]
            self._scheme = ByteLevel(vocabulary, rule)
            self._adds_bos = vocabulary.flag("add_bos_token", rule.adds_bos)
            self._prefix = prefix or SpacePrefix.NEVER
            self._strips_prefix = False
        self._plain_marks = self._marks(TokenType.USER_DEFINED)
        self._all_marks = self._marks(TokenType.USER_DEFINED, TokenType.CONTROL)
        self._control_marks = self._marks(TokenType.CONTROL)

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        """Raises BadModelFile or UnsupportedModel."""
        return cls(Vocabulary(file.metadata))

    def encode(
        self, text: str, *, bos: bool = True, parse_special: bool = True, shield: str = ""
    ) -> list[int]:
        """Token ids, with the beginning of sequence in front where the file wants it.

        With `parse_special` False, text like "<end_of_turn>" stays text: for what a user wrote.
        A control token with the letter `shield` in it stays text too, and the letter vanishes.
        """
        # Half a surrogate pair, which JSON can carry, is no letter: it becomes U+FFFD.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids: list[int] = []
        parts = self._split(self._scheme.written(text), parse_special, shield)
        for index, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._scheme.encode(self._prefixed(part, is_first=index == 0))
        bos_id = self.vocabulary.bos_id
        if bos and self._adds_bos and bos_id is not None and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        return ids

    def control_texts(self) -> frozenset[str]:
        """What would become a control token, as `written` has it."""
        return self._control_marks.texts

    def written(self, text: str) -> str:
        """The text as its special tokens are looked for, letter for letter."""
        return self._scheme.written(text)

    def control_ids(self, text: str) -> list[int]:
        """The control tokens in a text, in their order."""
        parts = self._control_marks.split(self._scheme.written(text))
        return [part for part in parts if isinstance(part, int)]

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text, without control tokens. Raises GenerationFailed for an unknown id."""
        stream = TextStream(self)
        text = "".join(map(stream.push, token_ids)) + stream.finish()
        return text.removeprefix(" ") if self._strips_prefix else text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, in UTF-8; nothing for a control token."""
        self.vocabulary.check(token_id)
        match self.vocabulary.types[token_id]:
            case TokenType.CONTROL:
                return b""
            case TokenType.UNKNOWN:
                return "\N{REPLACEMENT CHARACTER}".encode()
            case _:
                return self._scheme.token_bytes(token_id)

    def name_of(self, token_id: int) -> str:
        """The token as the file writes it."""
        return self.vocabulary.text_of(token_id)

    def stream(self) -> TextStream:
        return TextStream(self)

    def _prefixed(self, run: str, *, is_first: bool) -> str:
        match self._prefix:
            case SpacePrefix.NEVER:
                return run
            case SpacePrefix.ALWAYS:
                return " " + run
            case SpacePrefix.UNLESS_THERE:
                return run if run.startswith(" ") else " " + run
            case SpacePrefix.FIRST:
                return " " + run if is_first and not run.startswith(" ") else run

    def _split(self, text: str, parse_special: bool, shield: str) -> Iterator[str | int]:
        if not shield:
            yield from (self._all_marks if parse_special else self._plain_marks).split(text)
            return
        for part in self._control_marks.split(text) if parse_special else (text,):
            if isinstance(part, int):
                yield part
            else:
                yield from self._plain_marks.split(part.replace(shield, ""))

    def _marks(self, *types: TokenType) -> _Marks:
        found = self.vocabulary.of_type(*types)
        return _Marks({self._scheme.written(text): token_id for text, token_id in found if text})


class TextStream:
    """Turns tokens into text as they come; a letter appears when its last byte has come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Bytes that can never become a letter turn into U+FFFD; those that may yet are kept back.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete now and was not before."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left at the end; the bytes of a letter that never became whole are dropped."""
        self._decoder.reset()
        return ""


class _Marks:
    """Tokens that are found in the text as they stand, before anything is merged."""

    def __init__(self, marks: dict[str, int]) -> None:
        self._ids = marks
        self.texts = frozenset(marks)
        self._lengths: dict[str, list[int]] = {}  # by first letter, the longest first
        for text in marks:
            self._lengths.setdefault(text[0], []).append(len(text))
        for letter, lengths in self._lengths.items():
            self._lengths[letter] = sorted(set(lengths), reverse=True)
        letters = "".join(map(re.escape, self._lengths))
        self._starts = re.compile(f"[{letters}]" if letters else r"(?!)")

    def split(self, text: str) -> Iterator[str | int]:
        """Runs of text and, between them, the ids of the leftmost longest marks."""
        done = position = 0
        while match := self._starts.search(text, position):
            start = match.start()
            found = self._at(text, start)
            if found is None:
                position = start + 1
                continue
            if start > done:
                yield text[done:start]
            yield self._ids[found]
            done = position = start + len(found)
        if done < len(text):
            yield text[done:]

    def _at(self, text: str, start: int) -> str | None:
        for length in self._lengths[text[start]]:
            candidate = text[start : start + length]
            if candidate in self._ids:
                return candidate
        return None
