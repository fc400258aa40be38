"""A text as an encoder takes it: token ids in a column, and how many of them the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mesh.errors import BadModelFile, BadPrompt, PromptTooLong
from runtime.formats.json_files import read_object
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.text.json_tokenizer import JsonTokenizer

SENTENCES = "sentence_bert_config.json"


class Reader:
    """The tokenizer of a model that reads texts, and the model's own limits."""

    def __init__(self, tokenizer: JsonTokenizer, vocabulary: int, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._vocabulary = vocabulary

    @classmethod
    def of(cls, checkpoint: Seq2SeqCheckpoint) -> Reader:
        """Reads the tokenizer, which may take seconds. Raises ModelNotFound or BadModelFile."""
        spec = checkpoint.spec
        limit = min(_max_tokens(checkpoint.path, spec.source.context), spec.source.context)
        return cls(checkpoint.tokenizer(), spec.vocabulary, limit)

    def read_cut(self, text: str) -> list[int]:
        """Token ids of a text; one too long loses its end, as sentence-transformers does it."""
        return self.tokenizer.encode_cut(text, self.max_tokens)

    def read(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of a text, or those given. Raises PromptTooLong, or BadPrompt for an id that
        the model does not have.
        """
        if isinstance(text, str):
            return self.tokenizer.encode(text, most=self.max_tokens)
        if not text or not 0 <= min(text) <= max(text) < self._vocabulary:
            raise BadPrompt(f"token ids lie between 0 and {self._vocabulary - 1}, one or more")
        if len(text) > self.max_tokens:
            raise PromptTooLong(
                f"the text has {len(text)} tokens and the model reads {self.max_tokens}; shorten it"
            )
        return list(text)


def column(tokens: Sequence[int]) -> Tensor:
    """[S, 1] int32, as tokens travel."""
    return torch.tensor(tokens, dtype=torch.int32)[:, None]


def _max_tokens(folder: Path, context: int) -> int:
    config = read_object(folder / SENTENCES) or {}
    value = config.get("max_seq_length")
    if value is None:
        return context
    if type(value) is not int or value < 1:
        raise BadModelFile(
            f"{folder / SENTENCES}: expected max_seq_length as a whole number from 1, "
            f"got {value!r:.60}"
        )
    return value
