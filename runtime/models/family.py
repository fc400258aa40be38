"""A family as one file format holds it: how its spec is read, and what its tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.models.names import NameMap
from runtime.models.spec import DecoderSpec

# What the file says of the model, and the names of its tensors. Raises BadModelFile for missing or
# impossible values, UnsupportedModel for what the family can be but our block cannot.
SpecReader = Callable[[Mapping[str, Any], frozenset[str]], DecoderSpec]


@dataclass(frozen=True, slots=True)
class Form:
    """One family in one format."""

    read_spec: SpecReader
    names: NameMap
