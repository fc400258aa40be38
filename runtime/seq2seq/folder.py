"""A folder with an encoder or encoder-decoder: Hugging Face's layout, or CTranslate2's Whisper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mesh.errors import ModelNotFound, UnsupportedModel
from runtime.formats.ctranslate2 import CTranslate2File
from runtime.formats.json_files import read_object
from runtime.formats.safetensors_folder import CONFIG, SafetensorsFolder
from runtime.models.whisper_ct2 import SPEC, original_config, original_tensors
from runtime.seq2seq.pooling import read_pooling
from runtime.seq2seq.weights import ModelFolder

GENERATION: Final = "generation_config.json"
CONVERTED: Final = "model.bin"


def open_folder(path: Path) -> ModelFolder:
    """Reads configs and headers. Raises ModelNotFound, BadModelFile or UnsupportedModel."""
    config = read_object(path / CONFIG)
    if config is None:
        raise ModelNotFound(f"{path} has no {CONFIG}; it should be the folder of a model")
    if (path / CONVERTED).is_file() and "model_type" not in config:
        return _converted(path, config)
    generation = read_object(path / GENERATION) or {}
    file = SafetensorsFolder.open(path)
    return ModelFolder(path, file, config, generation, read_pooling(path))


def _converted(path: Path, config: Mapping[str, Any]) -> ModelFolder:
    file = CTranslate2File.open(path / CONVERTED)
    if file.spec != SPEC:
        raise UnsupportedModel(f"{file.path} holds a {file.spec!r:.60}; known is only {SPEC}")
    file = file.with_tensors(original_tensors(file.tensors))
    return ModelFolder(path, file, original_config(file.tensors, config), {}, None)
