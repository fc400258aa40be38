"""Fields of a request body that several APIs share, each read with a check that names it."""

from __future__ import annotations

import secrets
from typing import Any, Final

from apps.api.http import BadRequest
from mesh.errors import PotluckError
from runtime.sampling import Sampling

MAX_INT: Final = (1 << 31) - 1
MAX_STOP_STRINGS: Final = 4


def field(body: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """The field, or `default` where it is missing or null. Raises BadRequest for another type."""
    value = body.get(name)
    if value is None:
        value = default
    if kind is float and type(value) is int and abs(value) <= MAX_INT:
        value = float(value)
    if type(value) is not kind or (isinstance(value, int) and abs(value) > MAX_INT):
        raise BadRequest(f"{name!r} must be a {kind.__name__}, got {value!r:.80}")
    return value


def optional_int(body: dict[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else int(field(body, name, int))


def at_least_one(body: dict[str, Any], name: str, default: int) -> int:
    count: int = field(body, name, int, default)
    if count < 1:
        raise BadRequest(f"{name!r} must be at least 1, got {count}")
    return count


def is_token(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INT


def stop_strings(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOP_STRINGS
        or not all(isinstance(one, str) and one for one in stops)
    ):
        raise BadRequest(f"'stop' must be a string or a list of at most {MAX_STOP_STRINGS} strings")
    return tuple(stops)


def sampling_of(body: dict[str, Any], logprobs: int | None = None) -> Sampling:
    """How tokens are to be chosen, by the names that OpenAI, llama.cpp and vLLM use."""
    seed = field(body, "seed", int, secrets.randbits(31))
    try:
        return Sampling(
            temperature=field(body, "temperature", float, 1.0),
            top_k=optional_int(body, "top_k"),
            top_p=field(body, "top_p", float, 1.0),
            seed=seed,
            min_p=field(body, "min_p", float, 0.0),
            repetition_penalty=field(body, "repetition_penalty", float, 1.0),
            frequency_penalty=field(body, "frequency_penalty", float, 0.0),
            presence_penalty=field(body, "presence_penalty", float, 0.0),
            logit_bias=_logit_bias(body.get("logit_bias")),
            logprobs=logprobs,
        )
    except (PotluckError, ValueError) as error:
        raise BadRequest(str(error)) from None


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """From {"token id": bias}, with the ids as text since JSON has no other keys."""
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise BadRequest("'logit_bias' must be an object from token ids to biases")
    biases = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise BadRequest(f"'logit_bias' names tokens by their ids; got {token!r:.60}")
        biases.append((int(token), float(field({"bias": bias}, "bias", float))))
    return tuple(sorted(biases))
