"""What encoders and encoder-decoders are for, in one process: the pure parts around a chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from runtime.compute.precision import Precision
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.listener import COMMAND_WINDOW_S, Listener, looping
from runtime.seq2seq.reader import Reader, column
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from tests.runtime.chain import Chain


def open_chain(
    path: Path, cuts: Sequence[int] = (), precision: Precision = Precision.FP32
) -> Chain:
    return Chain.of(Seq2SeqCheckpoint(open_folder(path), precision), cuts)


class Embedder:
    def __init__(self, path: Path, cuts: Sequence[int] = (), **options: Precision) -> None:
        self.chain = open_chain(path, cuts, **options)
        self.reader = Reader.of(self.chain.checkpoint)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """[N, width]"""
        return torch.cat([self.chain.vector(column(self.reader.read_cut(text))) for text in texts])


class TextToText:
    def __init__(self, path: Path, cuts: Sequence[int] = ()) -> None:
        self.chain = open_chain(path, cuts)
        self.reader = Reader.of(self.chain.checkpoint)

    def answer(self, text: str, max_new_tokens: int) -> str:
        said = self.chain.generate(column(self.reader.read(text)), max_new_tokens)
        return self.reader.tokenizer.decode(said)


class Transcriber:
    def __init__(self, path: Path, cuts: Sequence[int] = (), **options: Precision) -> None:
        self.chain = open_chain(path, cuts, **options)
        checkpoint = self.chain.checkpoint
        self.listener = Listener(checkpoint.spec, checkpoint.tokenizer())

    def transcribe(self, pcm: Tensor, window_s: float = COMMAND_WINDOW_S) -> str:
        listener, texts = self.listener, []
        for frames in listener.windows(pcm, window_s):
            said: list[int] = []
            for token in self.chain.generate(frames, listener.most_tokens, listener.prompt):
                said.append(token)
                if looping(said):
                    break
            texts.append(listener.text(said))
        return " ".join(filter(None, texts))
