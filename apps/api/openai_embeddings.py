"""OpenAI's form of embeddings: bodies of /v1/embeddings, checked, and their answers."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from apps.api.fields import field, is_token, optional_int
from apps.api.http import BadRequest
from apps.embedder import Embedded

MAX_INPUTS: Final = 2048  # as OpenAI has it


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A checked request body."""

    model: str
    texts: list[str] | list[list[int]]
    as_base64: bool
    dimensions: int | None


def parse_embeddings(body: dict[str, Any]) -> EmbeddingsRequest:
    """Raises BadRequest, which says which field is wrong and what it should be."""
    form = field(body, "encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise BadRequest(f"'encoding_format' must be 'float' or 'base64', got {form!r:.80}")
    return EmbeddingsRequest(
        model=field(body, "model", str),
        texts=_texts(body.get("input")),
        as_base64=form == "base64",
        dimensions=optional_int(body, "dimensions"),
    )


def embeddings_text(asked: EmbeddingsRequest, found: Embedded) -> str:
    """The answer as JSON. For a thread, and written one vector at a time: 2048 of them take half a
    second, in which the event loop must get its turn.

    Raises BadRequest where another width was asked for than the model has.
    """
    width = len(found.vectors[0])
    if asked.dimensions not in (None, width):
        raise BadRequest(
            f"'dimensions' must be {width}, the width of {found.model}, or left out; "
            f"got {asked.dimensions}"
        )
    data = ",".join(
        json.dumps({"object": "embedding", "index": index, "embedding": written})
        for index, vector in enumerate(found.vectors)
        for written in (_written(vector, asked.as_base64),)
    )
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    rest = json.dumps({"object": "list", "model": found.model, "usage": usage})
    return f'{rest[:-1]}, "data": [{data}]}}'


def _texts(value: Any) -> list[str] | list[list[int]]:
    """One text or several; each as a string, or as token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if len(value) > MAX_INPUTS and not all(map(is_token, value)):
            raise BadRequest(f"'input' holds at most {MAX_INPUTS} texts; got {len(value)}")
        if all(isinstance(one, str) for one in value):
            return value
        if all(map(is_token, value)):
            return [value]
        if all(isinstance(one, list) and one and all(map(is_token, one)) for one in value):
            return value
    raise BadRequest(
        "'input' must be a string, a list of strings, a list of token ids, or a list of such lists"
    )


def _written(vector: Tensor, as_base64: bool) -> list[float] | str:
    """As numbers, or as their little-endian float32 bytes."""
    if as_base64:
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
