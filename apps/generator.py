"""The generator: from a prompt to text, on whatever devices the plan says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from apps.completion import Completion, Prompt
from apps.opener import Opened, Opener
from apps.planning.messages import Wish
from mesh.errors import BadPrompt, PromptTooLong
from runtime.chat.messages import Chat
from runtime.chat.template import ChatPrompt, ChatTemplate
from runtime.formats.gguf import GGUFFile
from runtime.purpose import Purpose
from runtime.seq2seq.reader import Reader, column
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.session import Session, Wanted
from runtime.text.tokenizer import Tokenizer
from runtime.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt as tokens, and what ends its answer."""

    ids: list[int]
    end_ids: frozenset[int]
    stop: tuple[str, ...]


class Generator:
    """Starts sessions."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    async def complete(self, prompt: Prompt) -> Completion:
        """Prepares a generation; nothing runs before its first piece is asked for.

        Raises ModelError for the model's name, WrongModel for one that does not write, or holds no
        chats; PromptTooLong for a prompt no plan can hold, and BadPrompt for ids or messages that
        the model cannot take.
        """
        if isinstance(prompt.text, Chat):
            opened = await self._opener.open_for("chats", prompt.model, Purpose.TEXT)
        else:
            purposes = (Purpose.TEXT, Purpose.TEXT_TO_TEXT)
            opened = await self._opener.open_for("completions", prompt.model, *purposes)
        if isinstance(opened.checkpoint, Checkpoint):
            return await self._continue(prompt, opened, opened.checkpoint)
        return await self._translate(prompt, opened, opened.checkpoint)

    async def _continue(self, prompt: Prompt, opened: Opened, checkpoint: Checkpoint) -> Completion:
        tokenizer = await self._opener.made(checkpoint, checkpoint.tokenizer)
        read = await _read(prompt.text, checkpoint, tokenizer)
        _check(read.ids, prompt, opened.wish)
        wanted = Wanted(read.ids, prompt.max_new_tokens, prompt.sampling, read.end_ids)
        session = Session(*opened.around, wanted)
        stop = (*prompt.stop, *read.stop)
        return Completion(opened.reference.name, len(read.ids), session, tokenizer, stop)

    async def _translate(
        self, prompt: Prompt, opened: Opened, checkpoint: Seq2SeqCheckpoint
    ) -> Completion:
        """The prompt is what the encoder reads; the decoder begins as the model's rules say."""
        decoding = checkpoint.decoding
        assert decoding is not None, "text to text has a decoder"
        assert not isinstance(prompt.text, Chat), "chats are refused before"
        reader = await self._opener.made(checkpoint, lambda: Reader.of(checkpoint))
        ids = reader.read(prompt.text)
        _check(ids, prompt, opened.wish)
        wanted = Wanted(
            [decoding.start], prompt.max_new_tokens, prompt.sampling, decoding.ends, column(ids)
        )
        session = Session(*opened.around, wanted)
        return Completion(opened.reference.name, len(ids), session, reader.tokenizer, prompt.stop)


async def _read(
    text: str | list[int] | Chat, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> _Read:
    """Raises BadPrompt or BadModelFile for a chat that its template cannot take."""
    match text:
        case list():
            return _Read(text, tokenizer.end_ids, ())
        case str():
            return _Read(tokenizer.encode(text), tokenizer.end_ids, ())
    said = await asyncio.to_thread(_said, text, checkpoint, tokenizer)
    return _Read(said.ids, said.end_ids, said.stop)


def _said(chat: Chat, checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatPrompt:
    """In the form of the template that is named, else of the model's own."""
    file = checkpoint.file
    if chat.template is not None:
        template = ChatTemplate.built_in(chat.template)
    elif isinstance(file, GGUFFile):
        template = ChatTemplate.from_metadata(file.metadata, checkpoint.name)
    else:
        template = ChatTemplate.from_folder(file.path)
    return template.prompt(chat, tokenizer)


def _check(ids: list[int], prompt: Prompt, wish: Wish) -> None:
    """Raises BadPrompt for what the model has no token for, PromptTooLong."""
    most = wish.profile.vocabulary - 1
    if not ids or not 0 <= min(ids) <= max(ids) <= most:
        raise BadPrompt(f"a prompt is text, or token ids between 0 and {most}")
    if any(token > most for token, _ in prompt.sampling.logit_bias):
        raise BadPrompt(f"logit_bias names token ids between 0 and {most}")
    if len(ids) >= wish.capacity.context:
        what = "conversation" if isinstance(prompt.text, Chat) else "prompt"
        how = "leave out its first messages" if isinstance(prompt.text, Chat) else "shorten it"
        raise PromptTooLong(
            f"the {what} has {len(ids)} tokens and the context holds {wish.capacity.context}; "
            f"{how}, or start the devices with a larger --context "
            f"(the model allows {wish.profile.context})"
        )
