"""How tokens are chosen: what a client may ask for. `runtime.drawing` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.errors import ConfigError
from runtime.chosen import MAX_LOGPROBS

MAX_TEMPERATURE: Final = 10.0
MAX_REPETITION_PENALTY: Final = 10.0
MAX_PENALTY: Final = 2.0  # OpenAI's range, as that of the bias
MAX_BIAS: Final = 100.0
MAX_BIASED_TOKENS: Final = 300
MAX_SEED: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Raises ConfigError for a value out of its range."""

    temperature: float = 0.0  # 0: always the most probable token; 1: as the model was trained
    top_k: int | None = None  # only the k most probable tokens
    top_p: float = 1.0  # only the fewest tokens that together have this probability
    seed: int = 0
    min_p: float = 0.0  # only tokens with this share of the best one's probability
    repetition_penalty: float = 1.0  # divides the logit of all that came before, or multiplies it
    frequency_penalty: float = 0.0  # taken from a token's logit for each time it was generated
    presence_penalty: float = 0.0  # taken once from that of each token that was generated
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to these tokens' logits
    logprobs: int | None = None  # so many most probable tokens are told with each; None: no logprob

    def __post_init__(self) -> None:
        _between("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k is at least 1, or left out; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p lies above 0 and is at most 1; got {self.top_p}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed lies between 0 and {MAX_SEED}; got {self.seed}")
        _between("min_p", self.min_p, 0.0, 1.0)
        if not 0 < self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise ConfigError(
                f"repetition_penalty lies above 0 and is at most {MAX_REPETITION_PENALTY:g}, "
                f"and 1 is none; got {self.repetition_penalty}"
            )
        _between("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _between("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            raise ConfigError(
                f"logit_bias names at most {MAX_BIASED_TOKENS} tokens; got {len(self.logit_bias)}"
            )
        for token, bias in self.logit_bias:
            _between(f"the logit_bias of token {token}", bias, -MAX_BIAS, MAX_BIAS)
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError(
                f"logprobs lies between 0 and {MAX_LOGPROBS}, or is left out; got {self.logprobs}"
            )

    @property
    def needs_history(self) -> bool:
        """Whether the tokens so far matter, and not only the logits."""
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty - 1.0)
        return any(penalties)


def _between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also for what is not a number
        raise ConfigError(f"{name} lies between {least:g} and {most:g}; got {value}")
