"""The request that plans are compared by."""

from __future__ import annotations

from dataclasses import dataclass

from planner.profile import ModelProfile, Stacks

# A prompt of a page, an answer of a paragraph.
PREFILL_TOKENS = 512
EXPECTED_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Request:
    """So many tokens in, and then so many out, one by one."""

    prompt: int = PREFILL_TOKENS
    answer: int = EXPECTED_NEW_TOKENS

    def seconds(self, prefill_s: float, decode_s: float) -> float:
        """All of it, from the seconds of a prefill step and of a decode step."""
        return prefill_s + self.answer * decode_s if self.answer else prefill_s

    def __str__(self) -> str:
        out = f" and {self.answer} out" if self.answer else ""
        return f"{self.prompt} tokens in{out}"


def request_of(model: ModelProfile) -> Request:
    """An encoder answers with the pass itself."""
    return Request(answer=0) if model.stacks is Stacks.ENCODER else Request()
