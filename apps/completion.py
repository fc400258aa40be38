"""A completion: what was asked, the pieces of text as they come, and where they stop."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from runtime.chat.messages import Chat
from runtime.chosen import Chosen
from runtime.sampling import Sampling
from runtime.session import Session
from runtime.text.wording import Wording


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
class Completion:
    """A generation about to run: the pieces come from `pieces`, once."""

    model: str
    prompt_tokens: int
    session: Session
    wording: Wording
    _stop: tuple[str, ...]

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Raises what `Session.tokens` raises."""
        stop, stream = StopFilter(self._stop), self.wording.stream()
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
