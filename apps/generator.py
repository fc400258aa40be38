"""The generator: from a prompt to text, on whatever devices the plan says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from apps.models.library import Library
from apps.planning.installer import Installer
from apps.planning.messages import Wish
from apps.planning.road import MeshRoad
from apps.settings import Settings
from apps.timeline import Timeline
from mesh.errors import BadPrompt, PromptTooLong
from mesh.node import Node
from planner.plan import Capacity
from runtime.chat.messages import Chat
from runtime.chat.template import ChatPrompt, ChatTemplate
from runtime.chosen import Chosen
from runtime.formats.gguf import GGUFFile
from runtime.sampling import Sampling
from runtime.session import Session, Wanted
from runtime.steps import Steps
from runtime.text.tokenizer import TextStream, Tokenizer
from runtime.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a client asks to be continued."""

    model: str
    text: str | list[int] | Chat
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text, and the tokens it took; the last piece says why it is the last."""

    text: str
    chosen: tuple[Chosen, ...]
    finish_reason: str | None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids alone."""
        return tuple(one.token for one in self.chosen)


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt as tokens, and what ends its answer."""

    ids: list[int]
    end_ids: frozenset[int]
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation about to run: the pieces come from `pieces`, once."""

    model: str
    prompt_tokens: int
    session: Session
    tokenizer: Tokenizer
    _stop: tuple[str, ...]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Raises what `Session.tokens` raises."""
        stop, stream = StopFilter(self._stop), TextStream(self.tokenizer)
        taken: list[Chosen] = []  # tokens since the last piece
        async with aclosing(self.session.tokens()) as tokens:
            async for token in tokens:
                taken.append(token)
                text = stop.push(stream.push(token.token))
                if stop.stopped:
                    yield Piece(text, tuple(taken), "stop")
                    return
                if text:
                    yield Piece(text, tuple(taken), None)
                    taken.clear()
        rest = stop.push(stream.finish()) + stop.finish()
        yield Piece(rest, tuple(taken), "stop" if stop.stopped else self.session.finish_reason)


class StopFilter:
    """Holds back text that may be the start of a stop string, and ends at the first whole one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> str:
        """The text that may be shown now; once `stopped`, all that came before the stop string."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stop), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self) -> str:
        """What was held back, when no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Generator:
    """Opens models and tokenizers once, and starts sessions."""

    def __init__(
        self,
        node: Node,
        library: Library,
        installer: Installer,
        steps: Steps,
        timeline: Timeline,
        settings: Settings,
    ) -> None:
        self._node = node
        self._library = library
        self._installer = installer
        self._steps = steps
        self._timeline = timeline
        self._settings = settings
        self._tokenizers: dict[str, asyncio.Future[Tokenizer]] = {}

    async def wish(self, model: str) -> Wish:
        """The model a person named, with the room this device asks for. Raises ModelError."""
        reference, checkpoint = await self._library.find(model)
        profile = checkpoint.profile()
        context = min(self._settings.context, profile.context)
        return Wish(reference, profile, Capacity(self._settings.sessions, context))

    async def complete(self, prompt: Prompt) -> Completion:
        """Prepares a generation; nothing runs before its first piece is asked for.

        Raises ModelError for the model's name, PromptTooLong for a prompt no plan can hold, and
        BadPrompt for ids or messages that the model cannot take.
        """
        reference, checkpoint = await self._library.find(prompt.model)
        wish = await self.wish(prompt.model)
        tokenizer = await self._tokenizer(checkpoint)
        read = await _read(prompt.text, checkpoint, tokenizer)
        _check(read.ids, prompt, wish)
        session = Session(
            self._node.view.me,
            Wanted(read.ids, prompt.max_new_tokens, prompt.sampling, read.end_ids),
            MeshRoad(self._node, self._installer, self._timeline, wish),
            self._steps,
        )
        stop = (*prompt.stop, *read.stop)
        return Completion(reference.name, len(read.ids), session, tokenizer, stop)

    async def _tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        key = str(checkpoint.model_id)
        if key not in self._tokenizers:
            self._tokenizers[key] = asyncio.ensure_future(asyncio.to_thread(checkpoint.tokenizer))
        try:
            return await asyncio.shield(self._tokenizers[key])
        except Exception:
            self._tokenizers.pop(key, None)  # so that the next request tries again
            raise


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
