"""Logprobs in OpenAI's two forms; nothing where none were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.chosen import Chosen
from runtime.text.wording import Wording


def completion_logprobs(
    wording: Wording, chosen: Sequence[Chosen], offset: int
) -> dict[str, Any] | None:
    """Four lists with an entry a token. `offset` is the first token's place in the answer."""
    told = [one for one in chosen if one.logprob is not None]
    if not told:
        return None
    texts = [_text(wording, one.token) for one in told]
    # A control token is not in the text, and part of a letter has no length of its own.
    shown = [len(wording.token_bytes(one.token).decode("utf-8", "ignore")) for one in told]
    starts = [offset + sum(shown[:index]) for index in range(len(shown))]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [
            {_text(wording, token): logprob for token, logprob in one.top} for one in told
        ],
        "text_offset": starts,
    }


def chat_logprobs(wording: Wording, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
    """A list with an object a token; its bytes tell part of a letter, which its text cannot."""
    content = [
        {
            **_entry(wording, one.token, one.logprob),
            "top_logprobs": [_entry(wording, token, logprob) for token, logprob in one.top],
        }
        for one in chosen
        if one.logprob is not None
    ]
    return {"content": content, "refusal": None} if content else None


def _entry(wording: Wording, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _text(wording, token),
        "logprob": logprob,
        "bytes": list(wording.token_bytes(token)),
    }


def _text(wording: Wording, token: int) -> str:
    """A token as text: part of a letter by its bytes, a control token by its name, which is not in
    the answer.
    """
    content = wording.token_bytes(token)
    try:
        return content.decode() if content else wording.name_of(token)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
