"""The form of OpenAI's answers: of completions and of chats, whole and as the events of a stream.

Beyond their form, `token_ids` are the ids behind a piece of text.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from apps.api.logprobs import chat_logprobs, completion_logprobs
from apps.completion import Completion, Piece


class CompletionAnswer:
    """One answer's fixed fields and its count of tokens."""

    prefix, whole_kind, event_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, completion: Completion) -> None:
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._completion = completion
        self._tokens = 0
        self._chars = 0

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        chosen = tuple(one for piece in pieces for one in piece.chosen)
        text = "".join(piece.text for piece in pieces)
        piece = Piece(text, chosen, pieces[-1].finish_reason)
        choice = self._choice(piece, self._whole_content(piece))
        return {**self._fixed(self.whole_kind), "choices": [choice], "usage": self._usage()}

    def opening(self) -> list[dict[str, Any]]:
        """The events before the first piece."""
        return []

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        return [self._event(self._choice(piece, {"text": piece.text}))]

    def usage_only(self) -> dict[str, Any]:
        return {**self._fixed(self.event_kind), "choices": [], "usage": self._usage()}

    def _whole_content(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def _choice(self, piece: Piece, content: dict[str, Any]) -> dict[str, Any]:
        choice = {
            "index": 0,
            **content,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
            "token_ids": list(piece.tokens),
        }
        self._tokens += len(piece.chosen)
        self._chars += len(piece.text)
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return completion_logprobs(self._completion.wording, piece.chosen, self._chars)

    def _event(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._fixed(self.event_kind), "choices": [choice]}

    def _fixed(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._completion.model,
        }

    def _usage(self) -> dict[str, int]:
        prompt = self._completion.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
        }


class ChatAnswer(CompletionAnswer):
    """The same for a chat: a message, which a stream sends as changes to it."""

    prefix, whole_kind, event_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        nothing = Piece("", (), None)
        return [self._event(self._choice(nothing, {"delta": {"role": "assistant", "content": ""}}))]

    def events(self, piece: Piece) -> list[dict[str, Any]]:
        """Text and the reason for the end come as two events, as clients expect them."""
        events = []
        if piece.text or piece.chosen:
            said = Piece(piece.text, piece.chosen, None)
            events.append(self._event(self._choice(said, {"delta": {"content": piece.text}})))
        if piece.finish_reason is not None:
            end = Piece("", (), piece.finish_reason)
            events.append(self._event(self._choice(end, {"delta": {}})))
        return events

    def _whole_content(self, piece: Piece) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": piece.text, "refusal": None}}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return chat_logprobs(self._completion.wording, piece.chosen)
