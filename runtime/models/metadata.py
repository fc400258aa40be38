"""A family's metadata, read with a check: what is missing or impossible is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mesh.errors import BadModelFile

MOST = 1 << 24  # no width, vocabulary or context comes near


@dataclass(frozen=True, slots=True)
class Metadata:
    """The entries under one architecture's prefix. Every method raises BadModelFile."""

    entries: Mapping[str, Any]
    architecture: str

    def count(self, key: str, *, most: int = MOST) -> int:
        """A whole number from 1 to `most`; must be there."""
        value = self._get(key)
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

    def pattern(self, key: str, default: int, layers: int) -> tuple[bool, ...]:
        """Which layers slide: the file holds a truth value a layer, or n: each n-th is full."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and value.dtype == np.bool_ and len(value) == layers:
            return tuple(bool(slides) for slides in value)
        if type(value) is not int or not 1 <= value <= MOST:
            raise self._wrong(key, f"{layers} truth values, or how often a layer is full", value)
        return tuple((index + 1) % value != 0 for index in range(layers))

    def vocabulary(self) -> int:
        """How many tokens the tokenizer knows, unless the family's own key says otherwise."""
        if f"{self.architecture}.vocab_size" in self.entries:
            return self.count("vocab_size")
        tokens = self.entries.get("tokenizer.ggml.tokens", ())
        if not 1 <= len(tokens) <= MOST:
            raise BadModelFile("the file has no tokenizer.ggml.tokens; take a complete GGUF file")
        return len(tokens)

    def _get(self, key: str, default: Any = None) -> Any:
        value = self.entries.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise BadModelFile(
                f"the file has no {self.architecture}.{key}; take a complete GGUF file"
            )
        return value

    def _wrong(self, key: str, expected: str, value: Any) -> BadModelFile:
        return BadModelFile(f"{self.architecture}.{key}: expected {expected}, got {value!r:.60}")
