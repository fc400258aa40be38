"""Token ids back to text, whichever tokenizer made them."""

from __future__ import annotations

from typing import Protocol


class Wording(Protocol):
    """What a stream of tokens needs to be read."""

    def stream(self) -> Stream:
        """A new one, which has said nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, in UTF-8; nothing for a control token."""

    def name_of(self, token_id: int) -> str:
        """The token as the vocabulary writes it."""


class Stream(Protocol):
    """Turns tokens into text as they come; a letter appears when its last byte has come."""

    def push(self, token_id: int) -> str:
        """The text that is complete now and was not before."""

    def finish(self) -> str:
        """What is left at the end; the bytes of a letter that never became whole are dropped."""
