"""The embedder: texts to vectors, on whatever devices the plan says."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

from torch import Tensor

from apps.opener import Opener
from runtime.purpose import Purpose
from runtime.reading import Reading
from runtime.seq2seq.reader import Reader, column
from runtime.seq2seq.weights import Seq2SeqCheckpoint


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector [width] for each text, and how many tokens were read for them."""

    model: str
    vectors: list[Tensor]
    tokens: int


class Embedder:
    """A session for each request; its texts go through the stages a few at once."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    async def embed(self, model: str, texts: list[str] | list[list[int]]) -> Embedded:
        """A text longer than the model reads loses its end; token ids are taken as they are.

        Raises ModelError for the model's name, WrongModel for one that gives no embeddings,
        BadPrompt or PromptTooLong for token ids that it cannot take, and what
        `Reading.all_vectors` raises.
        """
        opened = await self._opener.open_for("embeddings", model, Purpose.EMBEDDINGS)
        checkpoint = opened.checkpoint
        assert isinstance(checkpoint, Seq2SeqCheckpoint), "decoders give no embeddings"
        reader = await self._opener.made(checkpoint, lambda: Reader.of(checkpoint))
        ids = await asyncio.to_thread(_read, reader, texts)
        reading = Reading(*opened.around, [column(one) for one in ids])
        async with aclosing(reading.all_vectors()) as vectors:
            found = [vector async for vector in vectors]
        return Embedded(opened.reference.name, found, sum(map(len, ids)))


def _read(reader: Reader, texts: list[str] | list[list[int]]) -> list[list[int]]:
    return [reader.read_cut(text) if isinstance(text, str) else reader.read(text) for text in texts]
