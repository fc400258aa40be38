"""The transcriber: speech to text, window by window, on whatever devices the plan says."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from torch import Tensor

from apps.opener import Opened, Opener
from runtime.purpose import Purpose
from runtime.sampling import Sampling
from runtime.seq2seq.listener import Listener, looping
from runtime.seq2seq.wav import read_wav
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.session import Session, Wanted


class Transcriber:
    """A session for each window, one after the other."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    async def transcribe(self, model: str, wav: bytes, language: str, sampling: Sampling) -> str:
        """The words in a WAV file.

        Raises ModelError for the model's name, WrongModel for one that does not hear, BadPrompt for
        a file or a language that it cannot take, and what `Session.tokens` raises.
        """
        opened = await self._opener.open_for("transcriptions", model, Purpose.SPEECH_TO_TEXT)
        checkpoint = opened.checkpoint
        assert isinstance(checkpoint, Seq2SeqCheckpoint), "decoders do not hear"
        tokenizer = await self._opener.made(checkpoint, checkpoint.tokenizer)
        listener = Listener(checkpoint.spec, tokenizer, language)
        windows = listener.windows(await asyncio.to_thread(read_wav, wav))
        texts = []
        while (frames := await asyncio.to_thread(next, windows, None)) is not None:
            texts.append(await _hear(opened, checkpoint, listener, frames, sampling))
        return " ".join(filter(None, texts))


async def _hear(
    opened: Opened,
    checkpoint: Seq2SeqCheckpoint,
    listener: Listener,
    frames: Tensor,
    sampling: Sampling,
) -> str:
    """What is said in one window. A model that repeats itself without end is stopped."""
    assert checkpoint.decoding is not None, "a model that hears has a decoder"
    ends = checkpoint.decoding.ends
    wanted = Wanted(list(listener.prompt), listener.most_tokens, sampling, ends, frames)
    session = Session(*opened.around, wanted)
    async with aclosing(session.tokens()) as tokens:
        async for _ in tokens:
            if looping(session.generated):
                break
    return listener.text(session.generated)
