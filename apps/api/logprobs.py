"""Logprobs in OpenAI's two forms; nothing where none were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.chosen import Chosen
from runtime.text.tokenizer import Tokenizer


def completion_logprobs(
    tokenizer: Tokenizer, chosen: Sequence[Chosen], offset: int
) -> dict[str, Any] | None:
    """Four lists with an entry a token. `offset` is the first token's place in the answer."""
    told = [one for one in chosen if one.logprob is not None]
    if not told:
        return None
    texts = [_text(tokenizer, one.token) for one in told]
    # A control token is not in the text, and part of a letter has no length of its own.
    shown = [len(tokenizer.token_bytes(one.token).decode("utf-8", "ignore")) for one in told]
    starts = [offset + sum(shown[:index]) for index in range(len(shown))]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [
            {_text(tokenizer, token): logprob for token, logprob in one.top} for one in told
        ],
        "text_offset": starts,
    }


def chat_logprobs(tokenizer: Tokenizer, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
    """A list with an object a token; its bytes tell part of a letter, which its text cannot."""
    content = [
        {
            **_entry(tokenizer, one.token, one.logprob),
            "top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in one.top],
        }
        for one in chosen
        if one.logprob is not None
    ]
    return {"content": content, "refusal": None} if content else None


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _text(tokenizer, token),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token)),
    }


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text: part of a letter by its bytes, a control token by its name, which is not in
    the answer.
    """
    content = tokenizer.token_bytes(token)
    try:
        return content.decode() if content else tokenizer.vocabulary.text_of(token)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
