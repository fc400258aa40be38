"""A model's tokens as its GGUF file lists them: text, type and id, and which are special."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

import numpy as np

from mesh.errors import BadModelFile, GenerationFailed, UnsupportedModel

# How chat models end a turn. A file names one end only, and often the one of the base model.
END_OF_TURN_TEXTS: Final = (
    *("<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>"),
    *("<|return|>", "<|call|>", "<|end_of_turn|>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>"),
    *("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "[EOT]", "<EOT>"),
)
# Where both of these are there, "<|end|>" ends one part of an answer and not the answer.
ANSWER_ENDS: Final = ("<|return|>", "<|call|>")
MAX_END_IDS: Final = 64  # a file that names more has taken something else for an end


class TokenType(IntEnum):
    """What a token is, numbered as in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """The tokens of one file. Raises BadModelFile when the file contradicts itself."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, Sequence) or not len(tokens):
            raise BadModelFile("the file has no tokenizer.ggml.tokens; take a complete GGUF file")
        self.texts: list[str] = list(tokens)
        self.types: list[int] = self._numbers("token_type", TokenType.NORMAL)
        # A comprehension, for dict(zip(...)) would hold the interpreter lock until the last entry.
        self.ids = {text: token_id for token_id, text in enumerate(self.texts)}
        self.bos_id = self._special_id("bos_token_id")
        self.unknown_id = self._special_id("unknown_token_id")
        self.eos_id = self._special_id("eos_token_id")
        self.end_ids = self._end_ids()

    def __len__(self) -> int:
        return len(self.texts)

    def text_of(self, token_id: int | None) -> str:
        """The token as the file writes it; nothing for none."""
        return "" if token_id is None else self.texts[token_id]

    def is_control(self, text: str) -> bool:
        token_id = self.ids.get(text)
        return token_id is not None and self.types[token_id] == TokenType.CONTROL

    def has(self, key: str) -> bool:
        return f"tokenizer.ggml.{key}" in self._metadata

    def scores(self) -> list[float]:
        """One a token; all 0 where the file has none."""
        return self._numbers("scores", 0.0)

    def merges(self) -> list[str]:
        """Pairs as "left right", the first first."""
        merges = self._metadata.get("tokenizer.ggml.merges")
        if not isinstance(merges, Sequence):
            raise BadModelFile("the file has no tokenizer.ggml.merges; take a complete GGUF file")
        return list(merges)

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise BadModelFile(f"tokenizer.ggml.{key}: expected true or false, got {value!r:.60}")
        return value

    def name(self, key: str, default: str, known: Sequence[str]) -> str:
        """A text that is one of `known`; raises UnsupportedModel for another."""
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if value not in known:
            raise UnsupportedModel(
                f"tokenizer.ggml.{key} is {value!r:.60}; known are {', '.join(known)}"
            )
        return str(value)

    def of_type(self, *types: TokenType) -> Iterator[tuple[str, int]]:
        """Texts and ids of all tokens of these types."""
        wanted = set(types)
        return (
            (text, token_id)
            for token_id, (text, kind) in enumerate(zip(self.texts, self.types, strict=True))
            if kind in wanted
        )

    def check(self, token_id: int) -> None:
        """Raises GenerationFailed for an id outside the vocabulary."""
        if not 0 <= token_id < len(self.texts):
            raise GenerationFailed(
                f"token ids lie between 0 and {len(self.texts) - 1}; got {token_id}"
            )

    def _numbers(self, key: str, default: float) -> list[Any]:
        numbers = self._metadata.get(f"tokenizer.ggml.{key}")
        if numbers is None:
            return [default] * len(self.texts)
        if not isinstance(numbers, np.ndarray | list) or len(numbers) != len(self.texts):
            raise BadModelFile(f"tokenizer.ggml.{key} does not hold one number for each token")
        return numbers.tolist() if isinstance(numbers, np.ndarray) else numbers

    def _end_ids(self) -> frozenset[int]:
        """What the file names as an end, one or (`eos_token_ids`) several, and what is known as
        the end of a turn by its text.
        """
        named = [self._special_id(key) for key in ("eot_token_id", "eom_token_id")]
        several = self._metadata.get("tokenizer.ggml.eos_token_ids", ())
        if not isinstance(several, Sequence | np.ndarray) or len(several) > MAX_END_IDS:
            raise BadModelFile(f"tokenizer.ggml.eos_token_ids is a list of at most {MAX_END_IDS}")
        numbers = several.tolist() if isinstance(several, np.ndarray) else several
        named += [self._checked_id("eos_token_ids", value) for value in numbers]
        texts = set(END_OF_TURN_TEXTS)
        if all(map(self.is_control, ANSWER_ENDS)):
            texts.discard("<|end|>")
        by_text = [self.ids[text] for text in texts if self.is_control(text)]
        return frozenset(i for i in (self.eos_id, *named, *by_text) if i is not None)

    def _special_id(self, key: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        return None if value is None else self._checked_id(key, value)

    def _checked_id(self, key: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value < len(self.texts):
            raise BadModelFile(f"tokenizer.ggml.{key}: expected a token's id, got {value!r:.60}")
        return value
