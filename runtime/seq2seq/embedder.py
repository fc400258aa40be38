"""Sentence embeddings: texts to vectors that are near each other when their meanings are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.compute.precision import Precision
from runtime.formats.json_files import read_object
from runtime.models.seq2seq_spec import Output
from runtime.seq2seq.chain import Chain, column
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.pooling import Pooling, PoolingKind
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.text.json_tokenizer import JsonTokenizer

# What sentence-transformers does with an encoder that says nothing of itself.
DEFAULT_POOLING: Final = Pooling(PoolingKind.MEAN, normalised=False)


class Embedder:
    """An encoder with its tokenizer and its pooling."""

    def __init__(self, chain: Chain, tokenizer: JsonTokenizer, max_tokens: int) -> None:
        """A text of more than `max_tokens` tokens loses its end."""
        self.chain = chain
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def open(
        cls, path: Path, cuts: Sequence[int] = (), precision: Precision = Precision.FP32
    ) -> Embedder:
        """A folder as Hugging Face lays it out.

        Raises ModelNotFound, BadModelFile, or UnsupportedModel for what is no encoder.
        """
        folder = open_folder(path)
        if folder.pooling is None:
            folder = replace(folder, pooling=DEFAULT_POOLING)
        checkpoint = Seq2SeqCheckpoint(folder, precision)
        spec = checkpoint.spec
        if spec.decoder is not None or spec.exit.output is not Output.HIDDEN:
            raise UnsupportedModel(
                f"{path} is a {spec.architecture} with a head of its own, not a sentence encoder"
            )
        limit = min(_max_tokens(path, spec.context), spec.context)
        return cls(Chain.of(checkpoint, cuts), JsonTokenizer.open(path), limit)

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self.chain.spec.hidden_size

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[N, width], a row for each text."""
        rows = [
            self.chain.answer(column(self.tokenizer.encode_cut(text, self.max_tokens)))
            for text in texts
        ]
        return torch.cat(rows) if rows else torch.empty(0, self.width)


def _max_tokens(folder: Path, context: int) -> int:
    config = read_object(folder / "sentence_bert_config.json") or {}
    value = config.get("max_seq_length")
    if value is None:
        return context
    if type(value) is not int or value < 1:
        raise BadModelFile(
            f"{folder / 'sentence_bert_config.json'}: expected max_seq_length as a whole number "
            f"from 1, got {value!r:.60}"
        )
    return value
