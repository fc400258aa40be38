"""What a file says of its model, read with a check: what is missing or impossible is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mesh.errors import BadModelFile, UnsupportedModel

MOST = 1 << 24  # no width, vocabulary or context comes near
MOST_LAYERS = 1024
MOST_HEADS = 4096


@dataclass(frozen=True, slots=True)
class Metadata:
    """The entries that begin with `prefix`. Every method raises BadModelFile."""

    entries: Mapping[str, Any]
    prefix: str = ""

    def has(self, key: str) -> bool:
        return self.entries.get(self.prefix + key) is not None

    def count(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        """A whole number from 1 to `most`; must be there, unless there is a default."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(key, f"a whole number from 1 to {most}", value)
        return value

    def whole(self, key: str, default: int) -> int:
        """A whole number from 0 on."""
        value = self._get(key, default)
        if type(value) is not int or not 0 <= value <= MOST:
            raise self._wrong(key, f"a whole number from 0 to {MOST}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, "a number", value)
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, "a number above 0", value)
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a text", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def table(self, key: str) -> Metadata:
        """The entries of an object; those of an empty one where there is none."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return Metadata(value)

    def pattern(self, key: str, default: int, layers: int) -> tuple[bool, ...]:
        """Which layers slide: the file holds a truth value a layer, or n: each n-th is full."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and value.dtype == np.bool_ and len(value) == layers:
            return tuple(bool(slides) for slides in value)
        if type(value) is not int or not 1 <= value <= MOST:
            raise self._wrong(key, f"{layers} truth values, or how often a layer is full", value)
        return tuple((index + 1) % value != 0 for index in range(layers))

    def kinds(self, key: str, layers: int, known: tuple[str, ...]) -> tuple[str, ...]:
        """A text for each layer, one of `known`."""
        value = self._get(key)
        if (
            not isinstance(value, list)
            or len(value) != layers
            or any(k not in known for k in value)
        ):
            raise self._wrong(key, f"{layers} texts out of {', '.join(known)}", value)
        return tuple(value)

    def vocabulary(self) -> int:
        """How many tokens the tokenizer knows, unless the file's own key says otherwise."""
        if self.has("vocab_size"):
            return self.count("vocab_size")
        tokens = self.entries.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, Sequence) or not 1 <= len(tokens) <= MOST:
            raise BadModelFile("the file has no tokenizer.ggml.tokens; take a complete GGUF file")
        return len(tokens)

    def only(self, key: str, known: Any) -> None:
        """Raises UnsupportedModel when the file asks for anything but `known`, its default."""
        value = self.entries.get(self.prefix + key)
        if value is not None and value != known:
            raise UnsupportedModel(
                f"{self.prefix}{key} is {value!r:.60}; only {known!r} is known here"
            )

    def _get(self, key: str, default: Any = None) -> Any:
        value = self.entries.get(self.prefix + key)
        if value is None:  # a config.json writes null for what is not set
            value = default
        if value is None:
            raise BadModelFile(
                f"the file has no {self.prefix}{key}; take a complete copy of the model"
            )
        return value

    def _wrong(self, key: str, expected: str, value: Any) -> BadModelFile:
        return BadModelFile(f"{self.prefix}{key}: expected {expected}, got {value!r:.60}")
