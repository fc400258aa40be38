"""One file a family: a spec and a checkpoint name map over the shared block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models import gemma3
from runtime.models.spec import Family

FAMILIES: Final[Mapping[str, Family]] = {gemma3.ARCHITECTURE: gemma3.FAMILY}


def family_of(metadata: Mapping[str, Any]) -> Family:
    """The family of a GGUF file; raises UnsupportedModel for one we do not have."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadModelFile("the file does not say its general.architecture; is it a model at all?")
    family = FAMILIES.get(architecture)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"architecture {architecture!r:.80} is not known; known: {known}")
    return family
