"""One file a family: how a spec is read and what the tensors are called, over the shared block.

The families here are decoders. A new one is a file like llama.py and a line in these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models import gemma3, gpt2, llama, opt, qwen2, qwen3
from runtime.models.family import Form

# By `general.architecture`, as llama.cpp names them.
GGUF_FAMILIES: Final[Mapping[str, Form]] = {
    "gemma3": gemma3.GGUF,
    "gpt2": gpt2.GGUF,
    "llama": llama.GGUF,
    "qwen2": qwen2.GGUF,
    "qwen3": qwen3.GGUF,
}
# By `model_type`, as transformers names them.
FOLDER_FAMILIES: Final[Mapping[str, Form]] = {
    "gemma3_text": gemma3.FOLDER,
    "gpt2": gpt2.FOLDER,
    "llama": llama.FOLDER,
    "opt": opt.FOLDER,
    "qwen2": qwen2.FOLDER,
    "qwen3": qwen3.FOLDER,
}


def gguf_form(metadata: Mapping[str, Any]) -> Form:
    """The family of a GGUF file; raises UnsupportedModel for one we do not have."""
    return _form(GGUF_FAMILIES, metadata, "general.architecture")


def folder_form(config: Mapping[str, Any]) -> Form:
    """The family of a config.json; raises UnsupportedModel for one we do not have."""
    return _form(FOLDER_FAMILIES, config, "model_type")


def _form(families: Mapping[str, Form], entries: Mapping[str, Any], key: str) -> Form:
    name = entries.get(key)
    if not isinstance(name, str):
        raise BadModelFile(f"the file does not say its {key}; is it a model at all?")
    if name not in families:
        known = ", ".join(sorted(families))
        raise UnsupportedModel(f"{key} {name!r:.80} is not known; known: {known}")
    return families[name]
