"""The generator: from a prompt to text, on whatever devices the plan says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from apps.installer import Installer
from apps.library import Library
from apps.plan_messages import Wish
from apps.road import MeshRoad
from apps.settings import Settings
from apps.timeline import Timeline
from mesh.errors import BadPrompt, PromptTooLong
from mesh.node import Node
from planner.plan import Capacity
from runtime.sampling import Sampling
from runtime.session import Session, Wanted
from runtime.steps import Steps
from runtime.tokenizer import TextStream, Tokenizer
from runtime.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a client asks to be continued."""

    model: str
    text: str | list[int]
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text, and the tokens it took; the last piece says why it is the last."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation about to run: the pieces come from `pieces`, once."""

    model: str
    prompt_tokens: int
    session: Session
    _stream: TextStream
    _stop: tuple[str, ...]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Raises what `Session.tokens` raises."""
        stop = StopFilter(self._stop)
        taken: list[int] = []  # tokens since the last piece
        async with aclosing(self.session.tokens()) as tokens:
            async for token in tokens:
                taken.append(token)
                text = stop.push(self._stream.push(token))
                if stop.stopped:
                    yield Piece(text, tuple(taken), "stop")
                    return
                if text:
                    yield Piece(text, tuple(taken), None)
                    taken.clear()
        rest = stop.push(self._stream.finish()) + stop.finish()
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

        Raises ModelError for the model's name, PromptTooLong for a prompt no plan can hold.
        """
        reference, checkpoint = await self._library.find(prompt.model)
        wish = await self.wish(prompt.model)
        tokenizer = await self._tokenizer(checkpoint)
        ids = prompt.text if isinstance(prompt.text, list) else tokenizer.encode(prompt.text)
        if not ids or not 0 <= min(ids) <= max(ids) < wish.profile.vocabulary:
            raise BadPrompt(
                f"a prompt is text, or token ids between 0 and {wish.profile.vocabulary - 1}"
            )
        if len(ids) >= wish.capacity.context:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens and the context holds "
                f"{wish.capacity.context}; shorten it, or start the devices with a larger "
                f"--context (the model allows {wish.profile.context})"
            )
        session = Session(
            self._node.view.me,
            Wanted(ids, prompt.max_new_tokens, prompt.sampling, tokenizer.end_ids),
            MeshRoad(self._node, self._installer, self._timeline, wish),
            self._steps,
        )
        return Completion(reference.name, len(ids), session, TextStream(tokenizer), prompt.stop)

    async def _tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        key = str(checkpoint.model_id)
        if key not in self._tokenizers:
            self._tokenizers[key] = asyncio.ensure_future(
                asyncio.to_thread(Tokenizer.from_gguf, checkpoint.file)
            )
        try:
            return await asyncio.shield(self._tokenizers[key])
        except Exception:
            self._tokenizers.pop(key, None)  # so that the next request tries again
            raise
